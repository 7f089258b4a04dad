"""The serving engine as an `eval.probing.guard.Compare`: behind all users, like every probe."""

import asyncio
import itertools
from collections.abc import Callable, Sequence

from eval.generate import GenerateError
from eval.probing.guard import Compared, Likeness
from pruning.errors import SecateurError
from server.engine.async_engine import AsyncEngine
from server.engine.request import BACKGROUND, SamplingParams
from server.engine.variant import Variant
from server.judging.agreement import agreement
from server.judging.answering import ask
from server.judging.rescoring import RECORDED_LOGPROBS, Recording, rescore
from server.tokenization import PromptTokenizer
from server.variants import VariantRegistry


class EngineCompare:
    """Answers by the reference, scored by the variants.

    Args:
        on_tokens: told of a variant and the tokens that it computed.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        registry: VariantRegistry,
        tokenizer: PromptTokenizer,
        on_tokens: Callable[[str, int], None],
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._tokenizer = tokenizer
        self._on_tokens = on_tokens
        self._numbers = itertools.count()

    async def __call__(
        self, prompt: str, *, reference: str, variants: Sequence[str], max_tokens: int
    ) -> Compared:
        by_name = {variant.name: variant for variant in self._registry.in_service()}
        if reference not in by_name:
            raise GenerateError(f"{reference} is not served any more")
        request_id = f"guard-{next(self._numbers)}"
        recording = await self._record(prompt, by_name[reference], max_tokens, request_id)
        tokens = len(recording.prompt_token_ids) + len(recording.token_ids)
        self._on_tokens(reference, tokens)
        served = [name for name in variants if name in by_name]
        found = await asyncio.gather(
            *(self._likeness(recording, by_name[name], f"{request_id}-{name}") for name in served)
        )
        likeness = {name: like for name, like in zip(served, found, strict=True) if like is not None}
        for name in likeness:
            self._on_tokens(name, tokens)
        return Compared(tokens * (1 + len(likeness)), likeness)

    async def _record(self, prompt: str, variant: Variant, max_tokens: int, request_id: str) -> Recording:
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, recorded_logprobs=RECORDED_LOGPROBS)
        asked = await ask(
            self._engine,
            self._tokenizer,
            prompt,
            variant,
            sampling,
            request_id=request_id,
            priority=BACKGROUND,
        )
        return Recording.of(asked.stream, max_tokens)

    async def _likeness(self, recording: Recording, variant: Variant, request_id: str) -> Likeness | None:
        """None where the variant could not be asked."""
        try:
            rescored = await rescore(self._engine, recording, variant, request_id=request_id)
        except SecateurError:
            return None
        found = agreement(rescored.logprobs, recording.top_logprobs, rescored.same_choice)
        return Likeness(found.tokens, found.agreements, found.kl_nats)
