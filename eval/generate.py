"""What evaluation asks of a model: one user message in, one answer out.

The in-process engine (server/judging/local.py), the serving process itself and a client of any OpenAI-style
URL (eval/endpoint.py) are all a `Generate`, so that whatever judges answers runs against each of them.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from pruning.errors import SecateurError

# "loop": the answer repeated itself without end and was cut off.
AnswerEnd = Literal["stop", "length", "loop"]


class GenerateError(SecateurError):
    """No answer could be had. It says nothing about what the model knows."""


@dataclass(frozen=True)
class Answer:
    """What a model said, why it ended, and what it cost in tokens."""

    text: str
    finish_reason: AnswerEnd
    prompt_tokens: int
    completion_tokens: int


class Generate(Protocol):
    """Answers one user message, greedily. Any number may be awaited at once."""

    async def __call__(self, prompt: str, *, variant: str, max_tokens: int) -> Answer:
        """`variant` is a name such as ``math-mini:s20``. Raises GenerateError."""
