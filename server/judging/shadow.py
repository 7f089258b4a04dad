"""Lets the dense variant score a share of the pruned answers, and keeps how far the two agree.

Users wait for none of it: an answer is drawn before it begins, scored after it has ended, in one prefill pass
behind all users. Token ids are held until then; nothing of a text is kept.
"""

import asyncio
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pruning.errors import SecateurError
from server.engine.async_engine import AsyncEngine
from server.engine.stream import RequestStream
from server.engine.variant import Variant
from server.judging.agreement import Agreement, ShadowOutcome, agreement
from server.judging.rescoring import RECORDED_LOGPROBS, Recording, rescore
from server.variants import VariantRegistry

MAX_SCORED_TOKENS = 512  # of one answer, its first; 64 log-probabilities and ids of each are 770 bytes
MAX_WAITING = 16  # answers; one more is dropped

OnShadowed = Callable[[str, ShadowOutcome, Agreement | None], None]


@dataclass(frozen=True)
class _Waiting:
    """An answer, and the pruned variant that gave it."""

    variant: Variant
    recording: Recording


class ShadowScorer:
    """A `server.generation.AnswerSampler`. Draws nothing while no variant of sparsity 0 is in service.

    Args:
        share: of the answers of pruned variants, 0..1.
        on_shadowed: told what became of each answer drawn.
        rng: draws them.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        registry: VariantRegistry,
        share: float,
        on_shadowed: OnShadowed,
        rng: random.Random,
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._share = share
        self._on_shadowed = on_shadowed
        self._rng = rng
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._numbers = itertools.count()
        self._found: dict[tuple[str, bytes], Agreement] = {}  # names are taken again, for other deltas

    def agreement(self, variant: Variant) -> Agreement:
        """Of all the variant's answers that were scored since the start."""
        return self._found.get((variant.name, variant.kv_key), Agreement())

    def recorded_logprobs(self, variant: Variant) -> int | None:
        if not variant.sparsity or self._dense() is None or self._rng.random() >= self._share:
            return None
        return RECORDED_LOGPROBS

    def take(self, stream: RequestStream) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._on_shadowed(stream.variant.name, ShadowOutcome.DROPPED, None)
            return
        self._waiting.append(_Waiting(stream.variant, Recording.of(stream, MAX_SCORED_TOKENS)))
        self._arrived.set()

    async def run(self) -> None:
        """Scores what arrives, one answer at a time, until it is cancelled."""
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            waiting = self._waiting.popleft()
            variant = waiting.variant
            found = await self._compare(waiting.recording)
            outcome = ShadowOutcome.FAILED if found is None else ShadowOutcome.SCORED
            if found is not None:
                self._found[variant.name, variant.kv_key] = self.agreement(variant) + found
            self._on_shadowed(variant.name, outcome, found)

    async def _compare(self, recording: Recording) -> Agreement | None:
        """None where the dense variant cannot be asked."""
        dense = self._dense()
        if dense is None:
            return None
        try:
            rescored = await rescore(
                self._engine, recording, dense, request_id=f"shadow-{next(self._numbers)}"
            )
        except SecateurError:
            return None
        return agreement(recording.top_logprobs, rescored.logprobs, rescored.same_choice)

    def _dense(self) -> Variant | None:
        densest = self._registry.in_service()[0]
        return densest if densest.sparsity == 0 else None
