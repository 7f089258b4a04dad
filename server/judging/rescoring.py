"""What one variant makes of another's answer, token by token: one prefill pass behind all users.

Knows the engine; what the figures are for is the caller's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.generate import GenerateError
from server.engine.async_engine import AsyncEngine
from server.engine.request import BACKGROUND, SamplingParams, ScoringParams, TokenLogprobs
from server.engine.stream import RequestStream
from server.engine.variant import Variant

RECORDED_LOGPROBS = 64


@dataclass(frozen=True)
class Recording:
    """An answer as the variant that gave it saw it: [tokens, 64] ids, likeliest first, and their logprobs."""

    prompt_token_ids: Sequence[int]
    token_ids: Sequence[int]
    top_ids: NDArray[np.int64]
    top_logprobs: NDArray[np.float64]

    @classmethod
    def of(cls, stream: RequestStream, max_tokens: int) -> "Recording":
        """The first tokens of an answer, one at least, that `RECORDED_LOGPROBS` were recorded of."""
        recorded = stream.recorded[:max_tokens]
        top = np.array([position.top for position in recorded])  # [tokens, 64, id and log-probability]
        return cls(
            prompt_token_ids=list(stream.prompt_token_ids),
            token_ids=stream.token_ids[: len(recorded)],
            top_ids=top[:, :, 0].astype(np.int64),
            top_logprobs=top[:, :, 1],
        )


@dataclass(frozen=True)
class Rescored:
    """The same answer as another variant sees it.

    Attributes:
        logprobs: [tokens, 64], of the recording's ids.
        same_choice: [tokens], whether both find the same token likeliest.
    """

    logprobs: NDArray[np.float64]
    same_choice: NDArray[np.bool_]


async def rescore(
    engine: AsyncEngine, recording: Recording, variant: Variant, *, request_id: str
) -> Rescored:
    """Has `variant` score a recorded answer. However it ends, nothing of it is left in the engine.

    Raises:
        SecateurError: it was refused, the engine died, or it is being stopped.
    """
    scores: list[TokenLogprobs] = []
    stream = engine.submit(
        request_id=request_id,
        prompt_token_ids=[*recording.prompt_token_ids, *recording.token_ids],
        variant=variant,
        sampling=SamplingParams(max_tokens=0, temperature=0.0),
        priority=BACKGROUND,
        scoring=ScoringParams(start=len(recording.prompt_token_ids), candidates=recording.top_ids.tolist()),
    )
    try:
        async for delta in stream:
            scores += delta.prompt_logprobs
    finally:
        stream.abort()
    if len(scores) != len(recording.token_ids):
        raise GenerateError(f"{variant.name} did not score an answer to its end: the server is shutting down")
    choices = np.array([position.top[0][0] for position in scores])
    return Rescored(
        logprobs=np.array([position.candidates for position in scores]),
        same_choice=choices == recording.top_ids[:, 0],
    )
