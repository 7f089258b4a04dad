"""Runs the workloads and turns timings into figures, each with every round it came from."""

import asyncio
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from bench.client import Client, Timing
from bench.workloads import Ask, Workloads

Figures = dict[str, Any]


async def measure(
    client: Client, workloads: Workloads, *, work: Sequence[int], rounds: int, sparsities: Sequence[float]
) -> dict[str, Figures]:
    """Figures of each workload in `work` (1 to 4), `rounds` rounds each, after a short warm-up."""
    plans: dict[int, tuple[Callable[[], list[Ask]], Callable[[list[Timing]], Figures]]] = {
        1: (lambda: [workloads.single()], _single_stream),
        2: (workloads.batch, _batch),
        3: (lambda: [workloads.long_prompt()], _prefill),
        4: (lambda: workloads.batch(sparsities), _batch),
    }
    await _round(client, [Ask(ask.prompt, 8, {}) for ask in workloads.batch()[:3]])
    results = {}
    with tqdm(total=rounds * len(work), unit="round") as bar:
        for number in work:
            asks, figures = plans[number]
            taken = []
            for _ in range(rounds):
                bar.set_description(f"W{number}")
                taken.append(figures(await _round(client, asks())))
                bar.update()
            results[f"W{number}"] = _summary(taken)
    return results


async def _round(client: Client, asks: Sequence[Ask]) -> list[Timing]:
    return await asyncio.gather(*(client.complete(ask.prompt, ask.max_tokens, ask.fields) for ask in asks))


def _single_stream(timings: list[Timing]) -> Figures:
    [timing] = timings
    gaps = timing.inter_token_seconds
    return {
        "decode_tokens_per_second": timing.decode_tokens_per_second,
        "ttft_seconds": timing.ttft_seconds,
        "inter_token_p50_seconds": _quantile(gaps, 0.5),
        "inter_token_p99_seconds": _quantile(gaps, 0.99),
    }


def _batch(timings: list[Timing]) -> Figures:
    wall = max(t.last_token for t in timings) - min(t.start for t in timings)
    gaps = [gap for t in timings for gap in t.inter_token_seconds]
    ttft = [t.ttft_seconds for t in timings]
    return {
        "output_tokens_per_second": sum(t.completion_tokens for t in timings) / wall,
        "wall_seconds": wall,
        "output_tokens": sum(t.completion_tokens for t in timings),
        "prompt_tokens": sum(t.prompt_tokens for t in timings),
        "ttft_p50_seconds": _quantile(ttft, 0.5),
        "ttft_p95_seconds": _quantile(ttft, 0.95),
        "inter_token_p50_seconds": _quantile(gaps, 0.5),
        "inter_token_p99_seconds": _quantile(gaps, 0.99),
    }


def _prefill(timings: list[Timing]) -> Figures:
    [timing] = timings
    return {
        "prefill_tokens_per_second": timing.prompt_tokens / timing.ttft_seconds,
        "ttft_seconds": timing.ttft_seconds,
        "prompt_tokens": timing.prompt_tokens,
    }


def _summary(rounds: list[Figures]) -> Figures:
    """Median, minimum and maximum of each figure, and the rounds themselves."""
    spread = {
        name: {
            "median": statistics.median(r[name] for r in rounds),
            "min": min(r[name] for r in rounds),
            "max": max(r[name] for r in rounds),
        }
        for name in rounds[0]
    }
    return {**spread, "rounds": rounds}


def _quantile(values: Sequence[float], q: float) -> float:
    """By linear interpolation between order statistics."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * q
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
