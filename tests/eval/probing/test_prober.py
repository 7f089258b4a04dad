"""The prober asks everybody the same, pays for it, and survives everything."""

import asyncio
import threading
from collections import Counter

import pytest

from eval.generate import GenerateError
from eval.probing.prober import Subject
from eval.probing.verdicts import Verdict
from eval.traps import Trap
from tests.eval.probing.world import DENSE, S10, S20, NumbersTask, SpentError, World


def test_everybody_is_asked_the_same_items_and_no_item_twice():
    world = World(tokens=3_000)
    world.run()
    prompts = {s.name: [p for p, variant in world.model.asked if variant == s.name] for s in world.subjects}
    assert set(prompts["m:s0"]) == set(prompts["m:s10"]) == set(prompts["m:s20"])
    assert len(set(prompts["m:s0"])) == len(prompts["m:s0"]) >= 90
    assert {world.prober.evidence(s.name).items for s in world.subjects} == {len(prompts["m:s0"])}


def test_nothing_is_asked_without_budget_and_all_is_paid_for():
    world = World()
    world.run()
    assert world.model.asked == []
    world.run(tokens=1)
    assert len(world.model.asked) == 3  # a round is begun while anything is left, and then paid back
    world.run(tokens=2_000)
    assert world.purse.spent == 10 * len(world.model.asked)
    assert 2_001 <= world.purse.spent < 2_001 + 8 * 30


def test_verdicts_are_reached_and_said_once():
    world = World(tokens=60_000)
    world.model.wrong = {"m:s20": 0.3}
    world.run()
    assert [(name, before, after) for name, before, after, _ in world.verdicts] == [
        ("m:s20", Verdict.UNPROVEN, Verdict.DEGRADED),
        ("m:s10", Verdict.UNPROVEN, Verdict.SAFE),
    ]
    assert world.verdicts[0][3].drop_low > 0.03
    assert [change.after for change in world.prober.changes("m:s20")] == [Verdict.DEGRADED]
    assert world.prober.evidence("m:s0").verdict is Verdict.SAFE
    assert world.prober.evidence("m:s0").drop_high == 0.0


def test_a_variant_breaks_and_is_mended():
    world = World(tokens=30_000)
    world.run()
    world.model.wrong = {"m:s20": 0.9}
    world.run(tokens=3_000)
    world.model.wrong = {}
    world.run(tokens=30_000)
    assert [after for name, _, after, _ in world.verdicts if name == "m:s20"] == [
        Verdict.SAFE,
        Verdict.DEGRADED,
        Verdict.SAFE,
    ]


def test_the_reference_is_the_densest_that_is_served():
    world = World(tokens=6_000, subjects=(S20, S10))
    world.model.wrong = {"m:s10": 0.5}
    world.run()
    assert world.prober.evidence("m:s10").verdict is Verdict.SAFE
    assert world.prober.evidence("m:s10").accuracy == pytest.approx(0.5, abs=0.15)
    assert world.prober.evidence("m:s20").drop < -0.3


@pytest.mark.parametrize("finite", [None, 40])
def test_outcomes_are_judged_in_the_order_of_the_items(finite):
    world = World(tokens=2_000, task=NumbersTask(finite))
    world.run()
    asked = list(dict.fromkeys(p.removeprefix("item ") for p, _ in world.model.asked))
    key = world.prober._key(S10, DENSE)
    assert [o.item_id for o in world.store.read(key).outcomes][: len(asked)] == asked


def test_a_failed_answer_is_no_outcome_and_the_rest_counts():
    world = World(tokens=3_000)
    world.model.broken = {"m:s20"}
    world.run()
    assert world.prober.evidence("m:s20").items == 0
    assert world.prober.evidence("m:s10").items == world.prober.evidence("m:s0").items > 90
    assert world.verdicts == []


def test_without_the_reference_nothing_can_be_compared():
    world = World(tokens=1_000)
    world.model.broken = {"m:s0"}
    world.run()
    assert [world.prober.evidence(s.name).items for s in world.subjects] == [0, 0, 0]


def test_a_dead_engine_is_asked_less_and_less_until_it_answers(caplog):
    world = World(tokens=1_000)
    world.model.broken, world.patience = {"m:s0", "m:s10", "m:s20"}, 12
    world.run()
    assert world.pauses == sorted(world.pauses)
    assert world.pauses[-1] == 60.0
    assert caplog.text.count("no probe was answered") == 1
    world.model.broken, world.patience = set(), 1
    world.run()
    assert world.prober.evidence("m:s20").items > 0


def test_variants_come_and_go():
    world = World(tokens=1_500, subjects=(DENSE, S10))
    world.run()
    assert world.prober.evidence("m:s20") is None
    world.subjects.append(S20)
    world.run(tokens=1_500)
    world.subjects.remove(S10)
    items = world.prober.evidence("m:s20").items
    assert 0 < items < world.prober.evidence("m:s0").items
    assert world.prober.evidence("m:s10") is None
    world.run(tokens=1_500)
    assert world.prober.evidence("m:s20").items > items
    world.subjects.clear()
    world.run(tokens=1_500)
    world.subjects += [DENSE, S10]
    assert world.prober.evidence("m:s10").items > 0


def test_a_finite_task_is_walked_through_before_anything_is_asked_again():
    world = World(tokens=1_000_000, task=NumbersTask(100))
    world.run_now(items=100)
    assert set(world.model.by_variant().values()) == {100}
    evidence = world.prober.evidence("m:s10")
    assert (evidence.items, evidence.repeats) == (100, 0)
    world.run_now(items=250)
    evidence = world.prober.evidence("m:s10")
    assert (evidence.items, evidence.repeats) == (100, 250)
    assert len(set(world.model.asked)) == 300


def test_a_variant_that_comes_later_is_asked_all_of_a_finite_task():
    world = World(task=NumbersTask(60), subjects=(DENSE, S10))
    world.run_now(items=40)
    world.subjects.append(S20)
    world.run_now(items=60)
    assert [world.prober.evidence(s.name).items for s in world.subjects] == [60, 60, 60]


@pytest.mark.parametrize("at_once", [1, 8])
def test_an_item_that_nobody_can_answer_stops_nothing(at_once):
    """It is asked three times and left alone; all others are asked, and then again."""
    world = World(task=NumbersTask(40), subjects=(DENSE, S10))
    answer, bad = world.model.__call__, "item 7"

    async def generate(prompt, *, variant, max_tokens):
        if prompt == bad:
            world.model.asked.append((prompt, variant))
            raise GenerateError("it does not fit")
        return await answer(prompt, variant=variant, max_tokens=max_tokens)

    world.prober._generate = generate
    for _ in range(60 // at_once):
        world.run_now(items=at_once) if at_once > 1 else run_some(world)
    evidence = world.prober.evidence("m:s10")
    assert evidence.items == 39
    assert evidence.repeats > 0
    asked = Counter(prompt for prompt, variant in world.model.asked if variant == "m:s10")
    assert asked[bad] == 3


def test_many_items_that_nobody_can_answer_stop_nothing():
    """Neither a run nor the pace of probing."""
    world = World(task=NumbersTask(40), subjects=(DENSE, S10))
    answer = world.model.__call__

    async def generate(prompt, *, variant, max_tokens):
        if int(prompt.split()[1]) < 12:
            raise GenerateError("it does not fit")
        return await answer(prompt, variant=variant, max_tokens=max_tokens)

    world.prober._generate = generate
    run_some(world, rounds=40)
    assert world.prober.evidence("m:s10").items == 28
    world.run_now(items=100)
    assert world.prober.evidence("m:s10").items == 28
    assert world.prober.evidence("m:s10").repeats > 40


def run_some(world, rounds=1):
    """Rounds of one item each, be it answered or not."""
    for _ in range(rounds):
        asyncio.run(world.prober._round(world.subjects, 1, lambda tokens: None))


def test_what_answered_in_anothers_name_is_no_evidence():
    """A variant that is replaced by another of its name while it is asked."""
    new = Subject(S10.name, S10.sparsity, S10.widths, delta="new")
    world = World(task=NumbersTask(40), subjects=(DENSE, S10, S20))
    answer = world.model.__call__

    async def generate(prompt, *, variant, max_tokens):
        world.subjects[1] = new
        return await answer(prompt, variant=variant, max_tokens=max_tokens)

    world.prober._generate = generate
    world.run_now(items=8)
    assert world.prober.evidence(S20.name).items == 8
    assert world.prober.evidence(S10.name) is None or world.prober.evidence(S10.name).items == 0
    world.subjects[1] = S10
    assert world.prober.evidence(S10.name).items == 0
    world.subjects[1] = new
    world.run_now(items=8)
    assert world.prober.evidence(S10.name).items == 8


@pytest.mark.parametrize("at_once", [1, 3])
def test_no_more_is_asked_at_once_than_finds_a_place(at_once):
    world, asking, most = World(at_once=at_once), 0, 0
    answer = world.model.__call__

    async def generate(prompt, *, variant, max_tokens):
        nonlocal asking, most
        asking += 1
        most = max(most, asking)
        found = await answer(prompt, variant=variant, max_tokens=max_tokens)
        asking -= 1
        return found

    world.prober._generate = generate
    world.run_now(items=16)
    assert most == at_once
    assert {evidence.items for evidence in map(world.prober.evidence, ("m:s0", "m:s10", "m:s20"))} == {16}


def test_answers_that_do_not_end_are_counted_as_traps():
    world = World()
    world.model.finish_reason, world.model.wrong = "loop", {"m:s20": 1.0}
    world.run_now(items=3)
    assert world.prober.evidence("m:s20").traps == {Trap.LOOP_BEFORE_ANSWER: 3}


def test_cancelling_ends_it_at_once_and_leaves_nothing_behind():
    world = World(tokens=10**9)

    async def cancelled():
        task = asyncio.create_task(world.prober.run())
        while len(world.model.asked) < 50:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(cancelled())


def test_only_the_event_loop_is_asked_who_is_served():
    world, threads = World(tokens=200), set()
    served = world.subjects

    def subjects():
        threads.add(threading.get_ident())
        return served

    world.prober._subjects = subjects

    async def everything():
        await world.prober.refresh()
        await world.prober.run_now(items=3)
        with pytest.raises(SpentError):
            await world.prober.run()

    asyncio.run(everything())
    assert threads == {threading.get_ident()}
