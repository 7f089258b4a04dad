"""One round of a workload on a contender, and what its timings say. Starts no server."""

import asyncio
import itertools
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from bench.client import Client, Timing
from bench.contender import Contender
from bench.workloads import CONCURRENCY, LONG_PROMPT_NEW_TOKENS, LONG_PROMPT_TOKENS, NEW_TOKENS, Ask

Figures = dict[str, float]
Cell = Callable[[Contender], Awaitable[Figures]]


async def run_round(clients: Sequence[Client], asks: Sequence[Ask]) -> list[Timing]:
    """All of `asks` at once, dealt to `clients` in turn."""
    dealt = zip(itertools.cycle(clients), asks)
    return await asyncio.gather(*(c.complete(ask.prompt, ask.max_tokens, ask.fields) for c, ask in dealt))


async def warm_up(contender: Contender) -> None:
    """Each shape once, short: first use may compile or allocate."""
    workloads = contender.workloads
    await run_round(contender.clients, workloads.batch(new_tokens=8))
    for client in contender.clients:
        await run_round([client], workloads.batch(count=1, new_tokens=8))
        await run_round([client], [workloads.long_prompt()])


async def single_stream(contender: Contender, sparsities: Sequence[float] = ()) -> Figures:
    """W1."""
    return _stream_figures(*await run_round(contender.clients, [contender.workloads.single(sparsities)]))


async def batch(
    contender: Contender,
    sparsities: Sequence[float] = (),
    count: int = CONCURRENCY,
    new_tokens: int = NEW_TOKENS,
) -> Figures:
    """W2; with sparsities, or a contender of several servers, W4."""
    asks = contender.workloads.batch(sparsities or contender.sparsities, count, new_tokens)
    return batch_figures(await run_round(contender.clients, asks))


async def long_prompt(
    contender: Contender, num_tokens: int = LONG_PROMPT_TOKENS, new_tokens: int = LONG_PROMPT_NEW_TOKENS
) -> Figures:
    """W3."""
    ask = contender.workloads.long_prompt(num_tokens, new_tokens)
    return prefill_figures(*await run_round(contender.clients, [ask]))


def _stream_figures(timing: Timing) -> Figures:
    gaps = timing.inter_token_seconds
    return {
        "decode_tokens_per_second": timing.decode_tokens_per_second,
        "ttft_seconds": timing.ttft_seconds,
        "prompt_tokens": timing.prompt_tokens,
        "inter_token_p50_seconds": quantile(gaps, 0.5),
        "inter_token_p99_seconds": quantile(gaps, 0.99),
    }


def batch_figures(timings: Sequence[Timing]) -> Figures:
    """Of requests that ran at once; the wall time is from the first one's start to the last one's end."""
    wall = max(t.last_token for t in timings) - min(t.start for t in timings)
    gaps = [gap for t in timings for gap in t.inter_token_seconds]
    ttft = [t.ttft_seconds for t in timings]
    return {
        "output_tokens_per_second": sum(t.completion_tokens for t in timings) / wall,
        "wall_seconds": wall,
        "output_tokens": sum(t.completion_tokens for t in timings),
        "prompt_tokens": sum(t.prompt_tokens for t in timings),
        "ttft_p50_seconds": quantile(ttft, 0.5),
        "ttft_p95_seconds": quantile(ttft, 0.95),
        "inter_token_p50_seconds": quantile(gaps, 0.5),
        "inter_token_p99_seconds": quantile(gaps, 0.99),
    }


def prefill_figures(timing: Timing) -> Figures:
    """Of one request: how fast its prompt was taken in, and how fast it went on after it."""
    return {
        "prefill_tokens_per_second": timing.prompt_tokens / timing.ttft_seconds,
        "decode_tokens_per_second": timing.decode_tokens_per_second,
        "ttft_seconds": timing.ttft_seconds,
        "prompt_tokens": timing.prompt_tokens,
    }


def summary(rounds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Median, minimum and maximum of each figure, and the rounds themselves."""
    return {**{name: spread([r[name] for r in rounds]) for name in rounds[0]}, "rounds": list(rounds)}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def quantile(values: Sequence[float], q: float) -> float:
    """By linear interpolation between order statistics."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * q
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
