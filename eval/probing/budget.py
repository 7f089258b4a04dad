"""How many tokens background work may spend."""

import time
from collections.abc import Callable
from typing import Protocol


class ProbeBudget(Protocol):
    """Asked before each round of probes, told after each answer."""

    def available(self) -> int:
        """Tokens that may be spent now; 0 or less where probes have to wait, such as while users queue."""

    def spend(self, tokens: int) -> None:
        """Takes note of `tokens` spent. A round may cost more than was available; that is paid back."""


class TokenBucket:
    """A `ProbeBudget` that fills at a rate, up to so many seconds' worth, and goes into debt.

    Args:
        tokens_per_second: the rate, asked for each time.
        blocked: whether nothing may be spent at this moment whatever has been saved.
        burst_seconds: how much may be saved up.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        tokens_per_second: Callable[[], float],
        *,
        blocked: Callable[[], bool] = lambda: False,
        burst_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = tokens_per_second
        self._blocked = blocked
        self._burst_seconds = burst_seconds
        self._clock = clock
        self._tokens = 0.0
        self._filled_at = clock()

    def available(self) -> int:
        now, rate = self._clock(), self._rate()
        self._tokens = min(self._tokens + rate * (now - self._filled_at), rate * self._burst_seconds)
        self._filled_at = now
        return 0 if self._blocked() else int(self._tokens)

    def spend(self, tokens: int) -> None:
        self._tokens -= tokens
