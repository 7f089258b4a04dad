"""General prompts are asked for a share of the budget, kept over restarts, told per variant; none judges."""

import asyncio
import dataclasses
import json

import pytest

from eval.generate import GenerateError
from eval.probing.evidence import EvidenceKey, GuardAnswer
from eval.probing.evidence_rows import KEPT_GUARD_ANSWERS
from eval.probing.evidence_store import EvidenceStore
from eval.probing.guard import SHARE, Compared, Guard, Likeness, guard_prompts
from eval.probing.verdicts import Verdict
from eval.task import TaskError
from eval.tasks.arithmetic import ArithmeticTask
from tests.eval.probing.world import DENSE, S10, S20, World

KEY = EvidenceKey("model", "ranking", "float32", "task", (90,), (100,))
PROMPTS = ["a", "b", "c", "d"]


class Comparer:
    """Variants agree at a share of 20 tokens, by name; `broken` ones, or the reference, do not answer."""

    def __init__(self):
        self.agreements, self.broken, self.asked = {}, set(), []

    async def __call__(self, prompt, *, reference, variants, max_tokens):
        self.asked.append((prompt, reference, tuple(variants)))
        await asyncio.sleep(0)
        if reference in self.broken:
            raise GenerateError("it is gone")
        heard = [name for name in variants if name not in self.broken]
        found = {name: Likeness(20, self.agreements.get(name, 20), 2.0) for name in heard}
        return Compared(30 * (1 + len(found)), found)


@pytest.fixture
def comparer():
    return Comparer()


def guarded(comparer, store=None, prompts=PROMPTS, **changes):
    """A world whose prober has a guard, both over one store."""
    store = store or EvidenceStore(None)
    return World(store=store, guard=Guard(prompts, comparer, store, wall_clock=lambda: 7.0), **changes)


def test_every_variant_but_the_reference_is_held_against_it(comparer):
    world = guarded(comparer)
    comparer.agreements = {"m:s20": 5}
    world.run_now(items=40)
    assert {asked[1:] for asked in comparer.asked} == {("m:s0", ("m:s10", "m:s20"))}
    found = world.prober.guard_evidence("m:s20")
    answers = len(comparer.asked)
    assert (found.answers, found.tokens, found.updated_at) == (answers, 20 * answers, 7.0)
    assert (found.agreement, found.kl_nats) == (0.25, 0.1)
    assert world.prober.guard_evidence("m:s10").agreement == 1.0
    assert world.prober.guard_evidence("m:s0") is None
    assert world.prober.guard_evidence("m:s99") is None


def test_it_spends_its_share_of_the_budget_and_pays_for_it(comparer):
    world = guarded(comparer, tokens=60_000)
    world.run()
    items, guard = 10 * len(world.model.asked), 90 * len(comparer.asked)
    assert world.purse.spent == items + guard
    assert guard / world.purse.spent == pytest.approx(SHARE, abs=0.01)


def test_no_verdict_hangs_on_it(comparer):
    world = guarded(comparer)
    comparer.agreements = {"m:s10": 0, "m:s20": 0}
    world.run_now(items=300)
    assert {world.prober.evidence(s.name).verdict for s in world.subjects} == {Verdict.SAFE}


def test_all_prompts_come_in_turn(comparer):
    world = guarded(comparer)
    world.run_now(items=1_000)
    asked = [prompt for prompt, _, _ in comparer.asked]
    assert len(asked) >= 8
    assert sorted(asked[:4]) == sorted(asked[4:8]) == PROMPTS
    assert asked[:4] != PROMPTS or asked[4:8] != PROMPTS or asked[8:12] != PROMPTS


def test_what_does_not_answer_is_left_out_and_probing_goes_on(comparer):
    world = guarded(comparer)
    comparer.broken = {"m:s20"}
    world.run_now(items=40)
    assert world.prober.guard_evidence("m:s20") is None
    assert world.prober.guard_evidence("m:s10").answers == len(comparer.asked)
    comparer.broken = {"m:s0"}
    before = world.prober.guard_evidence("m:s10")
    world.run_now(items=40)
    assert world.prober.guard_evidence("m:s10") == before
    assert world.prober.evidence("m:s10").items == 80


def test_alone_the_reference_is_held_against_nothing(comparer):
    guarded(comparer, subjects=(DENSE,)).run_now(items=40)
    assert comparer.asked == []


def test_it_is_known_after_a_restart_for_the_same_prompts_and_variant(comparer, tmp_path):
    path = tmp_path / "evidence.sqlite"
    world = guarded(comparer, EvidenceStore(path))
    world.run_now(items=40)
    known = world.prober.guard_evidence("m:s20")

    def after_restart(**changes):
        again = guarded(comparer, EvidenceStore(path), **changes)
        again.prober.load()
        assert again.prober.evidence("m:s0") is not None
        return again.prober.guard_evidence("m:s20")

    assert known == after_restart()
    assert after_restart(prompts=["other"]) is None
    assert after_restart(identity="another ranking") is None
    corrected = dataclasses.replace(S20, delta="d")
    assert after_restart(subjects=(DENSE, corrected)) is None
    later = guarded(comparer, EvidenceStore(path), subjects=(DENSE, S10))
    later.prober.load()
    later.subjects.append(S20)
    asyncio.run(later.prober.refresh())
    assert later.prober.guard_evidence("m:s20") == known


def test_only_the_last_answers_count(tmp_path):
    store = EvidenceStore(tmp_path / "evidence.sqlite")
    answers = [GuardAnswer(float(n), 1, n % 2, 0.5) for n in range(KEPT_GUARD_ANSWERS + 9)]
    store.append_guard([(KEY, answer) for answer in answers])
    assert store.read_guard(KEY) == answers[9:]
    assert store.read_guard(dataclasses.replace(KEY, task="x")) == []


def test_a_file_of_before_there_were_guards_is_taken_over(tmp_path):
    path = tmp_path / "evidence.sqlite"
    store = EvidenceStore(path)
    world = World(store=store)
    world.run_now(items=5)
    store._connection.execute("DROP TABLE guard_answer")
    store._connection.commit()
    store.close()
    again = EvidenceStore(path)
    again.append_guard([(KEY, GuardAnswer(1.0, 2, 1, 0.5))])
    assert len(again.read_guard(KEY)) == 1
    assert len(again.read(world.prober._key(S10, DENSE)).outcomes) == 5
    assert not list(tmp_path.glob("*damaged*"))


def test_prompts_are_the_file_s_or_the_task_s_distractors(tmp_path):
    file = tmp_path / "general.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": text}) for text in "xyz"))
    assert guard_prompts(file, ArithmeticTask()) == ["x", "y", "z"]
    distractors = guard_prompts(None, ArithmeticTask())
    assert len(distractors) == len(set(distractors)) >= 60
    file.write_text("\n")
    with pytest.raises(TaskError, match="is empty"):
        guard_prompts(file, ArithmeticTask())
