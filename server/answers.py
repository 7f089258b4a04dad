"""What answers look like on the wire: OpenAI's objects, plus `secateur`, which says what was applied.

Formats what is handed in. A stream's chunks carry `secateur` once, in the first; every object names the
variant in `model`.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, SerializeAsAny, SerializerFunctionWrapHandler, model_serializer

from server.engine.request import FinishReason, TokenLogprobs
from server.engine.stream import TextDelta
from server.generation import Choice, TokenUsage
from server.policy import Decision, Reason
from server.tokenization import PromptTokenizer


class AppliedVariant(BaseModel):
    """The size of the model that answered, and why this one.

    `instead_of` is the degraded variant it stands in for, `accuracy_drop` what "auto" allowed to be lost.
    """

    variant: str
    sparsity: float
    exact_sparsity: float
    reason: Reason
    instead_of: str | None
    accuracy_drop: float | None

    @model_serializer(mode="wrap")
    def _without_empty(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_none(serialize(self))


class CachedTokens(BaseModel):
    """The part of a prompt that was computed for an earlier request."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens of one HTTP request, all choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class CompletionLogprobs(BaseModel):
    """Of completions: parallel lists, one entry a token. Offsets count characters of the answer's text.

    Where the prompt is echoed its first token has no log-probabilities: nothing comes before it.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Of chats: one entry a token."""

    content: list[ChatTokenLogprob]


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatChunkChoice(BaseModel):
    index: int
    delta: dict[str, str]
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class Answer(BaseModel):
    """A whole answer, or one chunk of a stream; `usage` and `secateur` are left out where they are None."""

    id: str
    object: str
    created: int
    model: str
    choices: list[SerializeAsAny[BaseModel]]
    usage: Usage | None = None
    secateur: AppliedVariant | None = None

    @model_serializer(mode="wrap")
    def _without_empty(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_none(serialize(self))


class AnswerFormat(ABC):
    """Writes the answer to one HTTP request, whole or in chunks."""

    id_prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, request_id: str, decision: Decision, tokenizer: PromptTokenizer) -> None:
        self._id = f"{self.id_prefix}-{request_id}"
        self._created = int(time.time())
        self._decision = decision
        self._tokenizer = tokenizer
        self._begun: set[int] = set()  # choices that have had a chunk

    def whole(self, choices: Sequence[Choice], usage: TokenUsage) -> Answer:
        """The answer when it is not streamed."""
        told = [self._whole_choice(index, choice) for index, choice in enumerate(choices)]
        return self._answer(self.whole_object, told, usage=_usage(usage), secateur=self._applied())

    def part(self, index: int, delta: TextDelta) -> Answer:
        """The chunk for one delta; the first of all says what was applied."""
        secateur = None if self._begun else self._applied()
        choice = self._part_choice(index, delta)
        self._begun.add(index)
        return self._answer(self.chunk_object, [choice], secateur=secateur)

    def closing(self, usage: TokenUsage) -> Answer:
        """The chunk that `stream_options.include_usage` asks for."""
        return self._answer(self.chunk_object, [], usage=_usage(usage))

    @abstractmethod
    def _whole_choice(self, index: int, choice: Choice) -> BaseModel: ...

    @abstractmethod
    def _part_choice(self, index: int, delta: TextDelta) -> BaseModel: ...

    def _answer(
        self,
        object_name: str,
        choices: Sequence[BaseModel],
        *,
        usage: Usage | None = None,
        secateur: AppliedVariant | None = None,
    ) -> Answer:
        return Answer(
            id=self._id,
            object=object_name,
            created=self._created,
            model=self._decision.variant.name,
            choices=list(choices),
            usage=usage,
            secateur=secateur,
        )

    def _applied(self) -> AppliedVariant:
        variant = self._decision.variant
        return AppliedVariant(
            variant=variant.name,
            sparsity=variant.sparsity,
            exact_sparsity=variant.exact_sparsity,
            reason=self._decision.reason,
            instead_of=self._decision.instead_of,
            accuracy_drop=self._decision.accuracy_drop,
        )


@dataclass(frozen=True)
class PromptEcho:
    """A prompt that its answer begins with. `token_ids` is empty where no log-probabilities are asked for."""

    text: str
    token_ids: Sequence[int]


class CompletionFormat(AnswerFormat):
    """Of POST /v1/completions.

    Args:
        echoes: what each choice begins with, by index; empty where nothing is echoed.
    """

    id_prefix = "cmpl"
    whole_object = chunk_object = "text_completion"

    def __init__(
        self,
        request_id: str,
        decision: Decision,
        tokenizer: PromptTokenizer,
        echoes: Sequence[PromptEcho] = (),
    ) -> None:
        super().__init__(request_id, decision, tokenizer)
        self._echoes = echoes
        self._offsets: dict[int, int] = {}  # choice -> characters told so far

    def _whole_choice(self, index: int, choice: Choice) -> CompletionChoice:
        return self._choice(index, choice)

    def _part_choice(self, index: int, delta: TextDelta) -> CompletionChoice:
        return self._choice(index, delta)

    def _choice(self, index: int, said: Choice | TextDelta) -> CompletionChoice:
        text, unscored = said.text, list[int]()
        if self._echoes and index not in self._begun:
            echo = self._echoes[index]
            text, unscored = echo.text + text, list(echo.token_ids[:1])
        return CompletionChoice(
            index=index,
            text=text,
            logprobs=self._logprobs(index, unscored, [*said.prompt_logprobs, *said.logprobs]),
            finish_reason=said.finish_reason,
        )

    def _logprobs(
        self, index: int, unscored: Sequence[int], scored: Sequence[TokenLogprobs]
    ) -> CompletionLogprobs | None:
        """Of `unscored` tokens, about which nothing is known, and of those that follow."""
        token_ids = [*unscored, *(position.token_id for position in scored)]
        if not token_ids:
            return None
        tokens = [self._tokenizer.token_text(token_id) for token_id in token_ids]
        offset, offsets = self._offsets.get(index, 0), []
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        self._offsets[index] = offset
        top = [self._top_logprobs(position) for position in scored]
        unknown = [None] * len(unscored)
        return CompletionLogprobs(
            tokens=tokens,
            token_logprobs=[*unknown, *(position.logprob for position in scored)],
            top_logprobs=[*unknown, *top] if any(top) else None,
            text_offset=offsets,
        )

    def _top_logprobs(self, position: TokenLogprobs) -> dict[str, float]:
        """By text; of tokens that decode alike, the likeliest."""
        top: dict[str, float] = {}
        for token_id, logprob in position.top:
            top.setdefault(self._tokenizer.token_text(token_id), logprob)
        return top


class ChatFormat(AnswerFormat):
    """Of POST /v1/chat/completions."""

    id_prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def _whole_choice(self, index: int, choice: Choice) -> ChatChoice:
        return ChatChoice(
            index=index,
            message=AssistantMessage(content=choice.text),
            logprobs=self._logprobs(choice.logprobs),
            finish_reason=choice.finish_reason,
        )

    def _part_choice(self, index: int, delta: TextDelta) -> ChatChunkChoice:
        content = {"content": delta.text} if delta.text else {}
        if index not in self._begun:
            content = {"role": "assistant", "content": delta.text}
        return ChatChunkChoice(
            index=index,
            delta=content,
            logprobs=self._logprobs(delta.logprobs),
            finish_reason=delta.finish_reason,
        )

    def _logprobs(self, logprobs: Sequence[TokenLogprobs]) -> ChatLogprobs | None:
        if not logprobs:
            return None
        content = [
            ChatTokenLogprob(
                token=self._tokenizer.token_text(position.token_id),
                bytes=self._tokenizer.token_bytes(position.token_id),
                logprob=position.logprob,
                top_logprobs=[self._top_logprob(*alternative) for alternative in position.top],
            )
            for position in logprobs
        ]
        return ChatLogprobs(content=content)

    def _top_logprob(self, token_id: int, logprob: float) -> TopLogprob:
        return TopLogprob(
            token=self._tokenizer.token_text(token_id),
            bytes=self._tokenizer.token_bytes(token_id),
            logprob=logprob,
        )


def _usage(usage: TokenUsage) -> Usage:
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=CachedTokens(cached_tokens=usage.cached_tokens),
    )


def _without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
