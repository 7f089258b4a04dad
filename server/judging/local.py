"""The engine in this process, without HTTP: a `Generate`, and the `Subject` of a study.

All variants of one ranking are in memory at once, so answers of every width share the batch. Knows the engine
and the chat template; what is asked, and why, is for eval/.
"""

import asyncio
import gc
import itertools
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from eval.generate import Answer, Generate
from eval.subject import Strategy, VariantFacts
from pruning.checkpoints.checkpoint import Checkpoint
from pruning.ranking.ranking import Ranking
from pruning.ranking.widths import Allocation, widths_at
from server.engine.async_engine import AsyncEngine
from server.engine.config import EngineConfig
from server.engine.kernels import choose_kernels
from server.engine.request import RequestStats, SamplingParams
from server.engine.stats import StepStats
from server.engine.variant import Variant
from server.judging.answering import ask
from server.loading.deltas import NamedDelta
from server.loading.sizes import load_sizes
from server.tokenization import PromptTokenizer


class Unobserved:
    """An `EngineObserver` that looks away: there is nobody to tell."""

    def step(self, stats: StepStats) -> None: ...

    def tokens(self, variant: str, count: int, *, first: bool, seconds: float) -> None: ...

    def finished(self, stats: RequestStats) -> None: ...


class LocalModel:
    """A running engine; an `eval.subject.StudiedModel` and a `Generate`. Made by `LocalSubject.open`.

    Args:
        is_timed: whether anybody wants to know how fast it is.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        tokenizer: PromptTokenizer,
        variants: Mapping[float, Variant],
        *,
        stop_on_loop: bool,
        is_timed: bool,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._variants = variants
        self._by_name = {variant.name: variant for variant in variants.values()}
        self._stop_on_loop = stop_on_loop
        self._is_timed = is_timed
        self._numbers = itertools.count()

    @property
    def generate(self) -> Generate:
        return self

    def facts(self, sparsity: float) -> VariantFacts:
        variant = self._variants[sparsity]
        return VariantFacts(
            variant.name, variant.exact_sparsity, variant.parameters, variant.standalone_bytes
        )

    async def __call__(self, prompt: str, *, variant: str, max_tokens: int) -> Answer:
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0, stop_on_loop=self._stop_on_loop)
        return await self._answer(prompt, self._by_name[variant], sampling)

    async def tokens_per_second(
        self, sparsity: float, prompts: Sequence[str], max_tokens: int
    ) -> float | None:
        if not self._is_timed:
            return None
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
        start = time.monotonic()
        answers = await asyncio.gather(
            *(self._answer(prompt, self._variants[sparsity], sampling) for prompt in prompts)
        )
        return sum(answer.completion_tokens for answer in answers) / (time.monotonic() - start)

    async def _answer(self, prompt: str, variant: Variant, sampling: SamplingParams) -> Answer:
        asked = await ask(
            self._engine, self._tokenizer, prompt, variant, sampling, request_id=str(next(self._numbers))
        )
        return asked.answer


@dataclass(frozen=True)
class LocalSubject:
    """One ranking of a checkpoint's neurons; an `eval.subject.Subject`.

    Attributes:
        stop_on_loop: end answers that go round in circles.
        is_timed: whether anybody wants to know how fast the variants are.
        delta: that corrects them; there is but one then.
    """

    strategy: Strategy
    sparsities: tuple[float, ...]
    checkpoint: Checkpoint
    ranking: Ranking
    allocation: Allocation
    config: EngineConfig
    stop_on_loop: bool
    is_timed: bool = False
    delta: NamedDelta | None = None

    def identity(self, sparsity: float) -> dict[str, Any]:
        """The dense model is the same under every ranking, up to rounding."""
        widths = self._widths(sparsity)
        is_dense = sum(widths) == len(widths) * self.checkpoint.architecture.intermediate_size
        return {
            "model": self.checkpoint.fingerprint,
            "tokenizer": self.checkpoint.tokenizer_fingerprint,
            "ends": sorted(self.checkpoint.eos_token_ids),
            "ranking": None if is_dense else self.ranking.digest,
            "widths": list(widths),
            "dtype": self.config.precision,
            "device": self.config.device.partition(":")[0],
            "kernels": self._kernels,
            **({} if self.delta is None else {"delta": self.delta.delta.digest}),
        }

    @asynccontextmanager
    async def open(self) -> AsyncIterator[LocalModel]:
        """Loads the neurons that the widest variant keeps.

        Raises:
            ModelError, EngineConfigError: the checkpoint is damaged, or too much was asked of it.
            ForeignDeltaError: the delta is of another model, ranking or width.
        """
        engine, builder = await asyncio.to_thread(
            load_sizes, self.checkpoint, self.ranking, self.allocation, self.sparsities, self.config
        )
        tokenizer = self.checkpoint.tokenizer()
        running = AsyncEngine(engine, tokenizer.backend_tokenizer, Unobserved())
        running.start()
        try:
            yield LocalModel(
                running,
                PromptTokenizer(tokenizer, self.checkpoint.config.vocab_size),
                {sparsity: builder.build(sparsity, self.delta) for sparsity in self.sparsities},
                stop_on_loop=self.stop_on_loop,
                is_timed=self.is_timed,
            )
        finally:
            await running.stop()
            del engine, builder, running
            gc.collect()  # the next ranking's weights should not meet these

    @cached_property
    def _kernels(self) -> str:
        return choose_kernels(self.config, self.checkpoint.config).description

    def _widths(self, sparsity: float) -> tuple[int, ...]:
        return widths_at(self.ranking, sparsity, self.allocation)
