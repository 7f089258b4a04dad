"""What the engine has been doing lately, read off its steps: how fast it computes, and who waits.

Written on the engine's thread, read on the event loop. Counts nothing for /metrics.
"""

import math

from server.engine.stats import StepStats

AVERAGED_SECONDS = 60.0


class Workload:
    """Takes in each step; the newest counts most.

    Attributes:
        last_step: None before the first. The engine steps only while it has work, so with none left this is
            history.
    """

    def __init__(self) -> None:
        self.last_step: StepStats | None = None
        self._average = (0.0, 0.0)  # tokens and seconds computed, fading; one object, so that they agree

    def step(self, stats: StepStats) -> None:
        """For the engine's thread."""
        num_tokens = sum(stats.batch_tokens.values()) + sum(stats.background_tokens.values())
        tokens, seconds = self._average
        fading = math.exp(-stats.step_seconds / AVERAGED_SECONDS)
        self._average = (fading * tokens + num_tokens, fading * seconds + stats.step_seconds)
        self.last_step = stats

    @property
    def tokens_per_second(self) -> float:
        """The engine's capacity: tokens, prompt and output alike, that a second of computing has brought.

        Over the last minute of computing, at the batches there were: pauses between steps do not count, and
        fuller batches bring more. 0 before the first step.
        """
        tokens, seconds = self._average
        return tokens / seconds if seconds > 0 else 0.0
