"""Verdicts come, lapse, go and come back; old evidence gives way; replaying restores all of it."""

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eval.probing.judge
from eval.probing.judge import Judge
from eval.probing.verdicts import Criterion, Outcome, Verdict
from eval.statistics import wilson_interval
from eval.traps import Trap
from tests.eval.probing.outcomes import outcomes

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
    monkeypatch.setattr(eval.probing.judge, "SPAN_OUTCOMES", 600)
    judge = Judge(Criterion())
    judged(judge, outcomes(600))
    assert judge.verdict is SAFE
    changes = judged(judge, outcomes(2_000, drop=0.03, seed=1))
    assert changes[0].after in (UNPROVEN, DEGRADED)
    assert judge.verdict is not SAFE


def test_evidence_is_of_the_last_two_spans_at_most(monkeypatch):
    monkeypatch.setattr(eval.probing.judge, "SPAN_OUTCOMES", 100)
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


def both_wrong(count, seed=0, of=0):
    """What a task that is too hard looks like, or a server on which nothing works any more."""
    rng = random.Random(seed)
    for n in range(count):
        item = f"hard/{rng.randrange(of)}" if of else f"hard/{seed}/{n}"
        yield Outcome(item, float(n), correct=False, reference_correct=False)


def test_what_the_reference_cannot_solve_proves_no_variant_safe():
    judge = Judge(Criterion())
    assert judged(judge, both_wrong(3_000)) == []
    evidence = judge.evidence()
    assert (judge.verdict, evidence.reference_accuracy) == (UNPROVEN, 0.0)
    assert evidence.drop_high < 0.03  # all that was asked for before
    assert evidence.nothing_to_lose.startswith("the reference solves 0 of 3,000 items; only where it is")
    assert "more than 6% does a tolerance of 3 points" in evidence.nothing_to_lose


def test_the_reason_comes_within_100_items_and_not_for_an_able_reference():
    judge, able = Judge(Criterion()), Judge(Criterion())
    judged(judge, both_wrong(100))
    assert judge.evidence().nothing_to_lose
    for outcome in outcomes(400, accuracy=0.2):
        able.push(outcome)
        assert able.evidence().nothing_to_lose is None


@pytest.mark.parametrize("accuracy", [0.04, 0.05])
def test_an_accuracy_of_less_than_twice_the_tolerance_proves_nothing(accuracy):
    """A variant that solves next to nothing would pass for safe."""
    safe = 0
    for seed in range(15):
        judge = Judge(Criterion())
        safe += any(c.after is SAFE for c in judged(judge, outcomes(1_000, accuracy=accuracy, seed=seed)))
    assert safe <= 1


def test_the_reference_says_so_too():
    judge = Judge(Criterion(), is_reference=True)
    judged(judge, both_wrong(200))
    assert (judge.verdict, judge.evidence().drop_high) == (SAFE, 0.0)
    assert "0 of 200 items" in judge.evidence().nothing_to_lose


@pytest.mark.parametrize("of", [0, 60])
def test_safety_lapses_when_the_reference_breaks_and_is_shown_anew_when_it_is_mended(of):
    judge = Judge(Criterion(), verdict=SAFE)
    judged(judge, outcomes(300, of=60 if of else 0))
    count, change = after(judge, both_wrong(300, of=of))
    assert count <= 200
    assert (change.before, change.after) == (SAFE, UNPROVEN)
    assert change.evidence.items == pytest.approx(min(count, of or count), abs=8)
    assert change.evidence.accuracy == pytest.approx(0, abs=0.05)
    assert "the reference solves " in change.evidence.nothing_to_lose
    judged(judge, both_wrong(500, seed=1, of=of))
    assert judge.verdict is UNPROVEN  # 500 ties are no evidence
    assert judge.evidence().nothing_to_lose
    count, change = after(judge, outcomes(2_000, seed=2))
    assert change.after is SAFE
    assert count > change.evidence.items > 100  # all of them since it was mended


def test_a_degraded_variant_does_not_recover_on_what_nobody_solves():
    judge = Judge(Criterion(), verdict=DEGRADED)
    assert judged(judge, both_wrong(2_000)) == []
    assert judge.verdict is DEGRADED
    assert judge.evidence().nothing_to_lose
    _, change = after(judge, outcomes(2_000, seed=1))
    assert change.after is SAFE
    assert change.evidence.items > 100


def test_a_degraded_variant_does_not_recover_by_a_few_items_asked_again():
    judge = Judge(Criterion(), verdict=DEGRADED)
    assert judged(judge, outcomes(1_500, regained=0.0, of=30)) == []


phases = st.lists(
    st.tuples(
        st.integers(1, 250),
        st.sampled_from((0.0, 0.02, 0.3, 0.9)),
        st.sampled_from((0, 40)),
        st.sampled_from((0.95, 0.95, 0.0)),
    ),
    max_size=6,
)


@settings(max_examples=40)
@given(phases)
def test_replaying_what_is_kept_restores_everything(phases):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eval.probing.judge, "SPAN_OUTCOMES", 120)
        live, kept, changes = Judge(Criterion(tolerance=0.1)), [], []
        for seed, (count, drop, of, accuracy) in enumerate(phases):
            sequence = (
                outcomes(count, drop=drop, of=of, seed=seed) if accuracy else both_wrong(count, seed, of)
            )
            for outcome in sequence:
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
    monkeypatch.setattr(eval.probing.judge, "SPAN_OUTCOMES", 50)
    judge = Judge(Criterion(), verdict=SAFE)
    (change,) = judged(judge, outcomes(120))
    assert (change.before, change.after) == (SAFE, UNPROVEN)
    assert judge.base is UNPROVEN
