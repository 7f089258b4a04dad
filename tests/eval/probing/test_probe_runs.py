"""A run of probes asks so many items of whom it is told to, whatever the budget."""

import asyncio

import pytest

from eval.probing.prober import MAX_RUN_ITEMS, ProbeError
from tests.eval.probing.world import NumbersTask, SpentError, World


def test_a_run_asks_whom_it_is_told_to_and_the_reference_whatever_the_budget():
    world, told = World(), []
    evidence = world.run_now(["m:s20"], 20, on_progress=lambda done, total: told.append((done, total)))
    assert world.model.by_variant() == {"m:s0": 20, "m:s20": 20}
    assert told == [(8, 20), (16, 20), (20, 20)]
    assert {name: e.items for name, e in evidence.items()} == {"m:s20": 20}
    assert world.purse.spent == 0


def test_a_run_goes_on_where_a_finite_task_begins_anew():
    world, told = World(task=NumbersTask(12)), []
    world.run_now(items=16, on_progress=lambda done, total: told.append(done))
    assert set(world.model.by_variant().values()) == {16}
    assert told == [8, 12, 16]


def test_a_run_of_all_tells_of_all():
    assert set(World().run_now(items=1)) == {"m:s0", "m:s10", "m:s20"}


@pytest.mark.parametrize(
    ("variants", "items", "told"),
    [
        (["m:s30"], 5, r"no variant 'm:s30'.*m:s0, m:s10, m:s20"),
        (None, 0, "1 to 1,000"),
        (None, MAX_RUN_ITEMS + 1, "1 to 1,000"),
    ],
)
def test_a_run_out_of_bounds_is_refused(variants, items, told):
    with pytest.raises(ProbeError, match=told):
        World().run_now(variants, items)


def test_a_run_that_nobody_answers_ends_with_an_error():
    world = World()
    world.model.broken = {"m:s0", "m:s10", "m:s20"}
    for _ in range(2):  # the first one has ended: the second is not refused
        with pytest.raises(ProbeError, match="after 0 of 5"):
            world.run_now(items=5)


def test_one_run_at_a_time_and_the_loop_goes_on_beside_it():
    world = World(tokens=3_000)

    async def both():
        first = asyncio.create_task(world.prober.run_now(items=60))
        await asyncio.sleep(0)
        with pytest.raises(ProbeError, match="going on already"):
            await world.prober.run_now(items=1)
        with pytest.raises(SpentError):
            await world.prober.run()
        await first

    asyncio.run(both())
    counts = set(world.model.by_variant().values())
    assert len(counts) == 1
    assert world.prober.evidence("m:s10").items == counts.pop() >= 160
    assert len(set(world.model.asked)) == len(world.model.asked)
