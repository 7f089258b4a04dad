"""The last quarter of an hour, in memory: rates, latencies and accuracies of every two seconds.

A task on the event loop reads the counters that /metrics shows and keeps what lies between two readings. It
never touches the engine's thread; nothing is kept over a restart.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from server.monitoring.totals import Totals, between, quantile


@dataclass(frozen=True)
class Accuracy:
    """Share of a variant's probes solved, with its bounds."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Reading:
    """What is known at one moment.

    Attributes:
        time: seconds since the epoch; what the interval is dated by.
        clock: seconds on the monotonic clock; what rates are divided by.
        running: variant name -> answers being computed, for every variant on offer.
        accuracies: variant name -> accuracy, of those that have answered probes.
    """

    time: float
    clock: float
    totals: Totals
    running: Mapping[str, int]
    waiting: int
    kv_usage_ratio: float
    process_bytes: int
    accuracies: Mapping[str, Accuracy] = field(default_factory=dict)


@dataclass(frozen=True)
class VariantInterval:
    """One variant during an interval. `accuracy` is as it stood at its end, None before any probe."""

    generation_tokens_per_second: float
    accuracy: Accuracy | None


@dataclass(frozen=True)
class Interval:
    """What lies between two readings: rates over it, percentiles of what came in it, levels at its end.

    Attributes:
        time: of its end, in seconds since the epoch.
        requests_per_second: answers that have ended; what begins and does not end is in `running`.
        first_token_p50 …: seconds; None where no token came and nobody gave up waiting for one.
    """

    time: float
    generation_tokens_per_second: float
    prompt_tokens_per_second: float
    requests_per_second: float
    rejections_per_second: float
    running: int
    waiting: int
    kv_usage_ratio: float
    first_token_p50: float | None
    first_token_p95: float | None
    inter_token_p50: float | None
    inter_token_p95: float | None
    process_bytes: int
    variants: Mapping[str, VariantInterval]


def interval(before: Reading, after: Reading) -> Interval:
    """The interval that two readings enclose; the later one's variants are in it."""
    old, new, seconds = before.totals, after.totals, after.clock - before.clock
    assert seconds > 0, "the monotonic clock goes on between two readings"

    def rate(earlier: Mapping[str, int], later: Mapping[str, int]) -> float:
        return (sum(later.values()) - sum(earlier.values())) / seconds

    def generated(name: str) -> float:
        return (new.generation_tokens.get(name, 0) - old.generation_tokens.get(name, 0)) / seconds

    first_token = between(old.first_token_seconds, new.first_token_seconds)
    inter_token = between(old.inter_token_seconds, new.inter_token_seconds)
    return Interval(
        time=after.time,
        generation_tokens_per_second=rate(old.generation_tokens, new.generation_tokens),
        prompt_tokens_per_second=rate(old.prompt_tokens, new.prompt_tokens),
        requests_per_second=rate(old.requests, new.requests),
        rejections_per_second=(new.rejections - old.rejections) / seconds,
        running=sum(after.running.values()),
        waiting=after.waiting,
        kv_usage_ratio=after.kv_usage_ratio,
        first_token_p50=quantile(0.5, first_token),
        first_token_p95=quantile(0.95, first_token),
        inter_token_p50=quantile(0.5, inter_token),
        inter_token_p95=quantile(0.95, inter_token),
        process_bytes=after.process_bytes,
        variants={
            name: VariantInterval(generated(name), after.accuracies.get(name)) for name in after.running
        },
    )


class LiveHistory:
    """The newest intervals; older ones fall out.

    Args:
        read: takes a reading; called on the event loop, every `interval_seconds`.
        span_seconds: how far back it goes.
    """

    def __init__(
        self,
        read: Callable[[], Reading],
        interval_seconds: float,
        span_seconds: float,
    ) -> None:
        self.read = read
        self.interval_seconds = interval_seconds
        self.started = time.time()
        self._intervals: deque[Interval] = deque(maxlen=int(span_seconds / interval_seconds))
        self._last: Reading | None = None

    def push(self, reading: Reading) -> None:
        """Closes the interval since the last reading. The first one closes none."""
        if self._last is not None:
            self._intervals.append(interval(self._last, reading))
        self._last = reading

    def since(self, moment: float | None) -> Sequence[Interval]:
        """Intervals that ended after `moment` (seconds since the epoch; None: all), oldest first."""
        return [kept for kept in self._intervals if moment is None or kept.time > moment]

    async def run(self) -> None:
        """Reads until it is cancelled. An interval that the event loop was late for is that much longer."""
        while True:
            self.push(self.read())
            await asyncio.sleep(self.interval_seconds)
