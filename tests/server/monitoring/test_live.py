"""The history of the last minutes, with a clock that the test moves."""

import asyncio
from dataclasses import replace

import pytest

from server.monitoring.live import Accuracy, Interval, LiveHistory, Reading, VariantInterval, interval
from server.monitoring.live_schema import Series
from server.monitoring.live_source import _series
from server.monitoring.totals import Totals

NOTHING = Totals({}, 0, {}, {}, (), ())
EPOCH = 1_700_000_000.0


def reading(clock: float, **changes: object) -> Reading:
    """Two variants that do nothing, `clock` seconds after the start; `changes` may be of the totals too."""
    totals = {name: value for name, value in changes.items() if name in Totals.__dataclass_fields__}
    others = {name: value for name, value in changes.items() if name not in totals}
    idle = Reading(
        time=EPOCH + clock,
        clock=clock,
        totals=replace(NOTHING, **totals),
        running={"m:s0": 0, "m:s20": 0},
        waiting=0,
        kv_usage_ratio=0.0,
        process_bytes=1_000,
    )
    return replace(idle, **others)


def never() -> Reading:
    raise AssertionError("the test pushes its own")


def history(span_seconds: float = 900.0) -> LiveHistory:
    return LiveHistory(never, interval_seconds=2.0, span_seconds=span_seconds)


def test_rates_are_differences_over_the_time_that_went_by() -> None:
    before = reading(
        10.0,
        requests={"m:s0": 3},
        rejections=1,
        prompt_tokens={"m:s0": 100},
        generation_tokens={"m:s0": 50, "m:s20": 10},
    )
    after = reading(
        14.0,  # a tick that came late
        requests={"m:s0": 4, "m:s20": 1},
        rejections=3,
        prompt_tokens={"m:s0": 110, "m:s20": 6},
        generation_tokens={"m:s0": 90, "m:s20": 12},
    )
    found = interval(before, after)
    assert found.time == EPOCH + 14
    assert found.requests_per_second == 0.5
    assert found.rejections_per_second == 0.5
    assert found.prompt_tokens_per_second == 4.0
    assert found.generation_tokens_per_second == 10.5
    assert found.variants["m:s0"].generation_tokens_per_second == 10.0
    assert found.variants["m:s20"].generation_tokens_per_second == 0.5


def test_percentiles_are_of_what_came_in_the_interval_alone() -> None:
    before = reading(0.0, first_token_seconds=((0.1, 100), (1.0, 100), (float("inf"), 100)))
    slow = reading(2.0, first_token_seconds=((0.1, 100), (1.0, 104), (float("inf"), 104)))
    idle = replace(slow, clock=4.0)
    found = interval(before, slow)
    assert found.first_token_p50 == pytest.approx(0.55)
    assert found.first_token_p95 == pytest.approx(0.955)
    assert (found.inter_token_p50, found.inter_token_p95) == (None, None)
    quiet = interval(slow, idle)
    assert (quiet.first_token_p50, quiet.first_token_p95) == (None, None)


def test_inter_token_percentiles_have_their_own_histogram() -> None:
    after = reading(2.0, inter_token_seconds=((0.5, 10), (float("inf"), 10)))
    found = interval(reading(0.0), after)
    assert (found.inter_token_p50, found.inter_token_p95) == (0.25, pytest.approx(0.475))
    assert found.first_token_p50 is None


def test_levels_are_those_at_the_end() -> None:
    accuracy = Accuracy(0.9, 0.8, 0.95)
    before = reading(0.0, waiting=9, process_bytes=5, accuracies={"m:s0": Accuracy(0.1, 0.0, 0.2)})
    after = reading(
        2.0,
        running={"m:s0": 2, "m:s20": 3},
        waiting=4,
        kv_usage_ratio=0.5,
        process_bytes=7,
        accuracies={"m:s0": accuracy},
    )
    found = interval(before, after)
    assert (found.running, found.waiting, found.kv_usage_ratio, found.process_bytes) == (5, 4, 0.5, 7)
    assert found.variants == {
        "m:s0": VariantInterval(0.0, accuracy),
        "m:s20": VariantInterval(0.0, None),
    }


def test_variants_come_and_go_with_the_offer() -> None:
    alone = reading(0.0, running={"m:s0": 0}, generation_tokens={"m:s0": 5})
    joined = reading(2.0, generation_tokens={"m:s0": 5, "m:s20": 8})
    left = reading(4.0, running={"m:s0": 0}, generation_tokens={"m:s0": 5, "m:s20": 8})
    kept = history()
    for moment in (alone, joined, left):
        kept.push(moment)
    first, second = kept.since(None)
    assert first.variants["m:s20"].generation_tokens_per_second == 4.0
    assert set(second.variants) == {"m:s0"}


def test_the_first_reading_is_where_counting_begins() -> None:
    kept = history()
    kept.push(reading(100.0, generation_tokens={"m:s0": 10_000}))
    assert kept.since(None) == []
    kept.push(reading(102.0, generation_tokens={"m:s0": 10_000}))
    assert [found.generation_tokens_per_second for found in kept.since(None)] == [0.0]


def test_the_oldest_fall_out() -> None:
    kept = history(span_seconds=6.0)
    for step in range(6):
        kept.push(reading(2.0 * step))
    assert [found.time - EPOCH for found in kept.since(None)] == [6.0, 8.0, 10.0]


def test_since_leaves_out_what_ended_at_that_moment_or_before() -> None:
    kept = history()
    for step in range(4):
        kept.push(reading(2.0 * step))
    assert [found.time - EPOCH for found in kept.since(EPOCH + 2)] == [4.0, 6.0]
    assert len(kept.since(EPOCH)) == 3
    assert kept.since(EPOCH + 6) == []


def test_it_reads_at_once_and_again_until_cancelled() -> None:
    clock = iter(range(1_000_000))
    kept = LiveHistory(lambda: reading(float(next(clock))), interval_seconds=0.001, span_seconds=1.0)

    async def main() -> None:
        running = asyncio.create_task(kept.run())
        while len(kept.since(None)) < 3:
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert running.cancelled()

    asyncio.run(main())
    assert [found.time - EPOCH for found in kept.since(None)][:3] == [1.0, 2.0, 3.0]


def test_each_series_is_the_column_of_its_name() -> None:
    told = _series(
        [
            Interval(
                time=1.0,
                generation_tokens_per_second=2.0,
                prompt_tokens_per_second=3.0,
                requests_per_second=4.0,
                rejections_per_second=5.0,
                running=6,
                waiting=7,
                kv_usage_ratio=8.0,
                first_token_p50=9.0,
                first_token_p95=10.0,
                inter_token_p50=11.0,
                inter_token_p95=None,
                process_bytes=13,
                variants={},
            )
        ]
    )
    assert told == Series(
        time=[1.0],
        generation_tokens_per_second=[2.0],
        prompt_tokens_per_second=[3.0],
        requests_per_second=[4.0],
        rejections_per_second=[5.0],
        running=[6],
        waiting=[7],
        kv_usage_ratio=[8.0],
        time_to_first_token_p50_seconds=[9.0],
        time_to_first_token_p95_seconds=[10.0],
        inter_token_p50_seconds=[11.0],
        inter_token_p95_seconds=[None],
        process_bytes=[13],
    )
