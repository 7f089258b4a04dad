"""What a study wants of a model: variants under one strategy, told apart before they are loaded.

server/judging/local.py has one in this process, eval/endpoint.py one at the other end of a line.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from eval.generate import Generate
from pruning.ranking.ranking import Order

REVERSED_SUFFIX = ", reversed"  # of the name of a strategy that removes the best first


@dataclass(frozen=True)
class Strategy:
    """Which neurons go first: those of the lowest score, or, in reverse, of the highest."""

    name: str
    score: str
    order: Order


@dataclass(frozen=True)
class VariantFacts:
    """What a variant is called and what it costs; None where nobody tells."""

    name: str
    exact_sparsity: float
    parameters: int | None
    weight_bytes: int | None  # of a checkpoint that held it alone


class StudiedModel(Protocol):
    """A strategy's variants, ready to answer, all at once."""

    @property
    def generate(self) -> Generate: ...

    def facts(self, sparsity: float) -> VariantFacts: ...

    async def tokens_per_second(
        self, sparsity: float, prompts: Sequence[str], max_tokens: int
    ) -> float | None:
        """Output tokens a second while all prompts are answered at once, each with `max_tokens` tokens.

        None where it cannot be measured, or nobody wants to know.
        """


class Subject(Protocol):
    """A model under one strategy, before it is loaded."""

    @property
    def strategy(self) -> Strategy: ...

    @property
    def sparsities(self) -> tuple[float, ...]:
        """What it is asked for; 0 is the dense model."""

    def identity(self, sparsity: float) -> Mapping[str, Any]:
        """All that this variant's greedy answers depend on, as JSON; cheap to say."""

    def open(self) -> AbstractAsyncContextManager[StudiedModel]:
        """Loads it. Raises SecateurError."""
