"""Figures say what the timings say, and every server gets its share of the requests."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from bench.client import Client, Timing
from bench.measure import batch_figures, prefill_figures, quantile, run_round, summary
from bench.workloads import Ask

FIRST = Timing(
    start=1.0,
    first_token=2.0,
    last_token=4.0,
    prompt_tokens=10,
    completion_tokens=5,
    arrivals=(2.0, 3.0, 4.0),
)
SECOND = Timing(
    start=0.5, first_token=1.0, last_token=4.5, prompt_tokens=20, completion_tokens=8, arrivals=(1.0, 4.5)
)


def test_batch_throughput_is_all_tokens_from_the_first_start_to_the_last_token():
    figures = batch_figures([FIRST, SECOND])
    assert figures["wall_seconds"] == 4.0
    assert figures["output_tokens_per_second"] == 13 / 4
    assert figures["prompt_tokens"] == 30


def test_prefill_counts_the_prompt_and_decode_leaves_the_first_token_out():
    figures = prefill_figures(SECOND)
    assert figures["prefill_tokens_per_second"] == 20 / 0.5
    assert figures["decode_tokens_per_second"] == 7 / 3.5


def test_quantiles_lie_between_order_statistics():
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([1.0, 2.0], 0.75) == 1.75
    assert quantile([5.0], 0.99) == 5.0


def test_a_summary_keeps_its_rounds():
    rounds = [{"x": 3.0}, {"x": 1.0}, {"x": 2.0}]
    assert summary(rounds) == {"x": {"median": 2.0, "min": 1.0, "max": 3.0}, "rounds": rounds}


class Recorder(Client):
    """Takes requests and sends none."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    async def complete(self, prompt: str, max_tokens: int, fields: Mapping[str, Any]) -> Timing:
        self.prompts.append(prompt)
        return FIRST


@pytest.mark.parametrize("count", [1, 2])
def test_requests_are_dealt_in_turn(count):
    recorders = [Recorder() for _ in range(count)]
    asks = [Ask(prompt, 1, {}) for prompt in "abcde"]
    timings = asyncio.run(run_round(recorders, asks))
    assert len(timings) == 5
    assert [recorder.prompts for recorder in recorders] == [list("abcde")[i::count] for i in range(count)]
