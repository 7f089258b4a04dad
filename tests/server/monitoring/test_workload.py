"""Capacity is tokens a second of computing, whoever they were for."""

import pytest

from server.engine.stats import StepStats
from server.monitoring.workload import AVERAGED_SECONDS, Workload


def step(seconds: float, users: int, background: int = 0) -> StepStats:
    return StepStats(
        step_seconds=seconds,
        batch_tokens={"mini:s0": users},
        running={},
        num_waiting=0,
        kv_usage_ratio=0.0,
        background_tokens={"mini:s0": background},
    )


def test_it_is_unknown_before_the_first_step() -> None:
    assert (Workload().tokens_per_second, Workload().last_step) == (0.0, None)


def test_users_and_background_count_alike_weighted_by_time() -> None:
    workload = Workload()
    for stats in (step(0.1, 10), step(0.3, 20, background=10)):
        workload.step(stats)
    assert workload.tokens_per_second == pytest.approx(40 / 0.4, rel=0.01)
    assert workload.last_step == stats


def test_what_was_fades() -> None:
    workload = Workload()
    workload.step(step(1.0, 1000))
    for _ in range(round(5 * AVERAGED_SECONDS)):
        workload.step(step(1.0, 10))
    assert workload.tokens_per_second == pytest.approx(10, rel=0.2)
