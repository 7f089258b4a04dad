"""Lets the dense variant score a share of the pruned answers, and keeps how far the two agree.

Users wait for none of it: an answer is drawn before it begins, scored after it has ended, in one prefill pass
behind all users. Token ids are held until then; nothing of a text is kept.
"""

import asyncio
import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pruning.errors import SecateurError
from server.agreement import Agreement, ShadowOutcome, agreement
from server.engine.async_engine import AsyncEngine, RequestStream
from server.engine.request import BACKGROUND, SamplingParams, ScoringParams, TokenLogprobs
from server.engine.variant import Variant
from server.variants import VariantRegistry

RECORDED_LOGPROBS = 64
MAX_SCORED_TOKENS = 512  # of one answer, its first; 64 log-probabilities and ids of each are 770 bytes
MAX_WAITING = 16  # answers; one more is dropped

OnShadowed = Callable[[str, ShadowOutcome, Agreement | None], None]


@dataclass(frozen=True)
class _Recording:
    """An answer as the pruned variant gave it. [tokens, 64] ids, likeliest first, and log-probabilities."""

    variant: str
    prompt_token_ids: list[int]
    token_ids: list[int]
    top_ids: NDArray[np.int64]
    top_logprobs: NDArray[np.float64]


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
        self._waiting: deque[_Recording] = deque()
        self._arrived = asyncio.Event()
        self._numbers = itertools.count()
        self._found: dict[str, Agreement] = {}

    def agreement(self, variant: str) -> Agreement:
        """Of all the variant's answers that were scored since the start."""
        return self._found.get(variant, Agreement())

    def recorded_logprobs(self, variant: Variant) -> int | None:
        if not variant.sparsity or self._dense() is None or self._rng.random() >= self._share:
            return None
        return RECORDED_LOGPROBS

    def take(self, stream: RequestStream) -> None:
        name = stream.variant.name
        if len(self._waiting) >= MAX_WAITING:
            self._on_shadowed(name, ShadowOutcome.DROPPED, None)
            return
        recorded = stream.recorded[:MAX_SCORED_TOKENS]
        top = np.array([position.top for position in recorded])  # [tokens, 64, id and log-probability]
        self._waiting.append(
            _Recording(
                variant=name,
                prompt_token_ids=list(stream.prompt_token_ids),
                token_ids=stream.token_ids[: len(recorded)],
                top_ids=top[:, :, 0].astype(np.int64),
                top_logprobs=top[:, :, 1],
            )
        )
        self._arrived.set()

    async def run(self) -> None:
        """Scores what arrives, one answer at a time, until it is cancelled."""
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            recording = self._waiting.popleft()
            found = await self._compare(recording)
            outcome = ShadowOutcome.FAILED if found is None else ShadowOutcome.SCORED
            if found is not None:
                self._found[recording.variant] = self.agreement(recording.variant) + found
            self._on_shadowed(recording.variant, outcome, found)

    async def _compare(self, recording: _Recording) -> Agreement | None:
        """None where the dense variant cannot be asked."""
        dense = self._dense()
        scores = None if dense is None else await self._score(recording, dense)
        if scores is None:
            return None
        dense_choices = np.array([position.top[0][0] for position in scores])
        dense_logprobs = np.array([position.candidates for position in scores])
        return agreement(recording.top_logprobs, dense_logprobs, dense_choices == recording.top_ids[:, 0])

    async def _score(self, recording: _Recording, dense: Variant) -> Sequence[TokenLogprobs] | None:
        scores: list[TokenLogprobs] = []
        try:
            stream = self._engine.submit(
                request_id=f"shadow-{next(self._numbers)}",
                prompt_token_ids=recording.prompt_token_ids + recording.token_ids,
                variant=dense,
                sampling=SamplingParams(max_tokens=0, temperature=0.0),
                priority=BACKGROUND,
                scoring=ScoringParams(
                    start=len(recording.prompt_token_ids), candidates=recording.top_ids.tolist()
                ),
            )
            try:
                async for delta in stream:
                    scores += delta.prompt_logprobs
            finally:
                stream.abort()
        except SecateurError:
            return None
        return scores if len(scores) == len(recording.token_ids) else None

    def _dense(self) -> Variant | None:
        densest = self._registry.in_service()[0]
        return densest if densest.sparsity == 0 else None
