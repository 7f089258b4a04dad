"""What the engine did, as plain numbers for whoever counts them. No torch, no Prometheus."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from server.engine.request import RequestStats


@dataclass(frozen=True)
class StepStats:
    """Taken after each step. Of users' requests, but for what says background.

    Attributes:
        step_seconds: from scheduling to the last token sampled.
        batch_tokens: variant name -> tokens the step computed, prompt and output alike.
        running: variant name -> requests running.
        num_waiting: requests waiting.
        kv_usage_ratio: KV blocks held by running requests, background ones too, over all blocks.
        prefix_queries: prompt tokens looked up in the prefix cache.
        prefix_hits: prompt tokens found there.
        preemptions: requests thrown out to be computed again.
        guessed_tokens: tokens guessed ahead (server/engine/lookup.py), and computed beside `batch_tokens`.
        right_guesses: those of them that came true.
        background_tokens: variant name -> tokens the step computed for background requests.
        num_background: background requests that run or wait.
        num_solo_rows: tokens that the step computed, guesses among them, if users' requests of one variant
            decoded in it and nothing else happened: no prompt, no other variant, no background. Else 0.
    """

    step_seconds: float
    batch_tokens: dict[str, int]
    running: dict[str, int]
    num_waiting: int
    kv_usage_ratio: float
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    guessed_tokens: int = 0
    right_guesses: int = 0
    background_tokens: Mapping[str, int] = field(default_factory=dict)
    num_background: int = 0
    num_solo_rows: int = 0


class EngineObserver(Protocol):
    """Told of all that is worth counting. `step` comes on the engine's thread, the rest on the event loop.

    Of background requests only `step` tells: nobody was given their tokens.
    """

    def step(self, stats: StepStats) -> None: ...

    def tokens(self, variant: str, count: int, *, first: bool, seconds: float) -> None:
        """`count` tokens reached a client's stream, `seconds` after the request's arrival
        (`first`) or after the previous delivery."""

    def finished(self, stats: RequestStats) -> None: ...
