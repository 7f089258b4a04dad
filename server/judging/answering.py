"""One question to the engine in this process, one whole answer: what probes, evaluations and studies ask for.

Knows the engine's streams and the chat template; what is asked, and of which variant, is the caller's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from eval.generate import Answer, AnswerEnd, GenerateError
from pruning.errors import SecateurError
from server.engine.async_engine import AsyncEngine
from server.engine.request import FinishReason, SamplingParams
from server.engine.stream import RequestStream
from server.engine.variant import Variant
from server.tokenization import PromptTokenizer

_ENDS: Mapping[FinishReason, AnswerEnd] = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.LOOP: "loop",
}


@dataclass(frozen=True)
class Asked:
    """A question's stream at its end, its text and why it ended."""

    stream: RequestStream
    text: str
    reason: FinishReason

    @property
    def answer(self) -> Answer:
        return Answer(
            self.text, _ENDS[self.reason], self.stream.num_prompt_tokens, self.stream.num_generated_tokens
        )


async def ask(
    engine: AsyncEngine,
    tokenizer: PromptTokenizer,
    prompt: str,
    variant: Variant,
    sampling: SamplingParams,
    *,
    request_id: str,
    priority: int = 0,
) -> Asked:
    """Asks one user message. However it ends, nothing of it is left in the engine.

    Raises:
        GenerateError: it was refused, the engine died, or it is being stopped.
    """
    text, reason = "", None
    try:
        token_ids = await tokenizer.encode_measured(prompt)
        stream = engine.submit(
            request_id=request_id,
            prompt_token_ids=token_ids,
            variant=variant,
            sampling=sampling,
            priority=priority,
        )
        try:
            async for delta in stream:
                text += delta.text
                reason = delta.finish_reason
        finally:
            stream.abort()
    except SecateurError as error:
        raise GenerateError(f"{variant.name} gave no answer: {error}") from error
    if reason is None:
        raise GenerateError(f"{variant.name}'s answer was cut off: the server is shutting down")
    return Asked(stream, text, reason)
