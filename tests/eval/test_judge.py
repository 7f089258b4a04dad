"""Verdicts come, lapse, go and come back; old evidence gives way; replaying restores all of it."""

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eval.judge
from eval.judge import Judge
from eval.statistics import wilson_interval
from eval.traps import Trap
from eval.verdicts import Criterion, Outcome, Verdict
from tests.eval.outcomes import outcomes

UNPROVEN, SAFE, DEGRADED = Verdict.UNPROVEN, Verdict.SAFE, Verdict.DEGRADED


def judged(judge, sequence):
    """The changes of verdict on the way."""
    return [change for outcome in sequence if (change := judge.push(outcome))]


def after(judge, sequence):
    """How many outcomes it takes to change the verdict, and the change."""
    return next((n, c) for n, outcome in enumerate(sequence, 1) if (c := judge.push(outcome)))


def test_nothing_is_proven_before_the_first_outcome():
    evidence = Judge(Criterion()).evidence()
    assert (evidence.verdict, evidence.since, evidence.updated_at) == (UNPROVEN, None, None)
    assert (evidence.items, evidence.accuracy, evidence.drop, evidence.trap_rate) == (0, None, None, 0.0)
    assert (evidence.accuracy_low, evidence.accuracy_high) == (0.0, 1.0)
    assert (evidence.drop_low, evidence.drop_high) == (-1.0, 1.0)
    assert evidence.age_seconds(5.0) is None


def test_evidence_counts_what_was_pushed():
    judge, pushed = Judge(Criterion()), list(outcomes(80, drop=0.02))
    assert judged(judge, pushed) == []
    evidence, solved = judge.evidence(), sum(o.correct for o in pushed)
    assert (evidence.items, evidence.repeats, evidence.accuracy) == (80, 0, solved / 80)
    assert (evidence.accuracy_low, evidence.accuracy_high) == wilson_interval(solved, 80)
    assert evidence.drop == pytest.approx(sum(o.reference_correct - o.correct for o in pushed) / 80)
    assert evidence.drop_low < evidence.drop < evidence.drop_high
    assert evidence.traps == {Trap.LOOP_BEFORE_ANSWER: 80 - solved}
    assert evidence.trap_rate == pytest.approx(1 - solved / 80)
    assert evidence.age_seconds(100.0) == 21.0


def test_a_good_variant_becomes_safe_once():
    judge = Judge(Criterion())
    (change,) = judged(judge, outcomes(1_500))
    assert (change.before, change.after, judge.verdict) == (UNPROVEN, SAFE, SAFE)
    assert change.evidence.drop_high <= 0.03
    assert judge.evidence().since == change.at == change.evidence.since


def test_a_bad_variant_is_degraded_and_its_evidence_starts_anew():
    judge = Judge(Criterion())
    count, change = after(judge, outcomes(1_000, drop=0.3))
    assert (change.before, change.after) == (UNPROVEN, DEGRADED)
    assert change.evidence.drop_low > 0.03
    assert change.evidence.items <= count < 60
    assert judge.evidence().items == 0
    assert judge.evidence().since == change.at
    assert judged(judge, outcomes(3_000, drop=0.3, seed=1)) == []
    assert judge.evidence().items == 3_000


def test_a_safe_variant_that_breaks_is_degraded_soon_and_shows_why():
    judge = Judge(Criterion())
    judged(judge, outcomes(5_000))
    count, change = after(judge, outcomes(200, drop=0.9, seed=1))
    assert count <= 30
    assert (change.before, change.after) == (SAFE, DEGRADED)
    # The 5,000 good ones before it are no part of the reason.
    assert change.evidence.items == pytest.approx(count, abs=3)
    assert change.evidence.drop > 0.7


def test_a_mended_variant_recovers_on_evidence_since_the_demotion():
    judge = Judge(Criterion())
    judged(judge, outcomes(500))
    judged(judge, outcomes(600, drop=0.9, seed=1))
    assert judge.verdict is DEGRADED
    count, change = after(judge, outcomes(2_000, seed=2))
    assert count <= 700
    assert (change.before, change.after) == (DEGRADED, SAFE)
    assert change.evidence.drop < 0.03
    assert judge.evidence().items == 0
    assert judged(judge, outcomes(2_000, seed=3)) == []


def test_safety_lapses_unless_shown_again(monkeypatch):
    monkeypatch.setattr(eval.judge, "SPAN_OUTCOMES", 600)
    judge = Judge(Criterion())
    judged(judge, outcomes(600))
    assert judge.verdict is SAFE
    changes = judged(judge, outcomes(2_000, drop=0.03, seed=1))
    assert changes[0].after in (UNPROVEN, DEGRADED)
    assert judge.verdict is not SAFE


def test_evidence_is_of_the_last_two_spans_at_most(monkeypatch):
    monkeypatch.setattr(eval.judge, "SPAN_OUTCOMES", 100)
    judge = Judge(Criterion())
    for outcome in outcomes(1_000):
        judge.push(outcome)
        assert judge.num_kept < 200
        assert judge.evidence().items == judge.num_kept
    assert judge.num_kept >= 100


def test_an_item_asked_again_is_no_new_evidence():
    judge = Judge(Criterion())
    judged(judge, outcomes(4_000, regained=0.0, of=60))
    evidence = judge.evidence()
    assert (evidence.items, evidence.items + evidence.repeats) == (60, 4_000)
    assert evidence.updated_at == 3_999.0
    assert (evidence.accuracy_low, evidence.accuracy_high) == wilson_interval(
        round(60 * evidence.accuracy), 60
    )
    assert judge.verdict is UNPROVEN
    assert judge.has_seen("item/0")
    assert not judge.has_seen("item/60")


def test_a_lost_item_lost_again_does_not_degrade():
    """Ten of a hundred lost seldom show that more than five are; the same ten, lost 20 times, are no more."""
    degraded = 0
    for seed in range(20):
        rng, judge = random.Random(seed), Judge(Criterion(tolerance=0.05))
        for n in [*rng.sample(range(100), 100), *(rng.randrange(100) for _ in range(2_000))]:
            judge.push(Outcome(f"{n}", 0.0, correct=n >= 10, reference_correct=True))
        degraded += judge.verdict is DEGRADED
    assert degraded <= 4


def test_a_variant_that_breaks_is_noticed_by_items_asked_again():
    judge = Judge(Criterion())
    judged(judge, outcomes(2_000, regained=0.0, of=200))
    assert judge.verdict is SAFE
    count, change = after(judge, outcomes(500, drop=0.9, of=200, seed=1))
    assert count <= 30
    assert change.after is DEGRADED


def test_the_reference_is_safe_by_definition():
    judge = Judge(Criterion(), is_reference=True)
    same = [dataclasses.replace(o, reference_correct=o.correct) for o in outcomes(9_000, accuracy=0.4)]
    assert judged(judge, same) == []
    evidence = judge.evidence()
    assert (evidence.verdict, evidence.drop, evidence.drop_low, evidence.drop_high) == (SAFE, 0.0, 0.0, 0.0)
    assert evidence.accuracy == pytest.approx(0.4, abs=0.05)


phases = st.lists(
    st.tuples(st.integers(1, 250), st.sampled_from((0.0, 0.02, 0.3, 0.9)), st.sampled_from((0, 40))),
    max_size=6,
)


@settings(max_examples=40)
@given(phases)
def test_replaying_what_is_kept_restores_everything(phases):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eval.judge, "SPAN_OUTCOMES", 120)
        live, kept, changes = Judge(Criterion(tolerance=0.1)), [], []
        for seed, (count, drop, of) in enumerate(phases):
            for outcome in outcomes(count, drop=drop, of=of, seed=seed):
                kept.append(outcome)
                if change := live.push(outcome):
                    changes.append(change)
                kept = kept[len(kept) - live.num_kept :]
        again = Judge(Criterion(tolerance=0.1), verdict=live.base)
        judged(again, kept)
        assert again.verdict is live.verdict
        again.resume(changes[-1].at if changes else None)
        if kept:
            assert again.evidence() == live.evidence()
        more = list(outcomes(300, drop=0.5, seed=99))
        assert [c.after for c in judged(again, more)] == [c.after for c in judged(live, more)]
        assert again.evidence().items == live.evidence().items


def test_what_lapsed_is_not_restored_as_safe(monkeypatch):
    monkeypatch.setattr(eval.judge, "SPAN_OUTCOMES", 50)
    judge = Judge(Criterion(), verdict=SAFE)
    (change,) = judged(judge, outcomes(120))
    assert (change.before, change.after) == (SAFE, UNPROVEN)
    assert judge.base is UNPROVEN
