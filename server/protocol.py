"""What requests look like on the wire: OpenAI's schemas, and the fields of them that are not implemented.

A field that would change the answer and is not implemented is an error, never silence; a field that nobody
knows is tolerated. Answers are in server/answers.py.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from eval.probing.prober import MAX_RUN_ITEMS
from server.engine.request import SamplingParams, ScoringParams
from server.errors import InvalidValueError, UnsupportedFieldError
from server.policy import AUTO, Ask

MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_PROMPTS = 2048  # of one request; how many answers may wait is the server's to say, and less
MAX_BIASES = 1024
MAX_STOP_CHARACTERS = 256  # of each: every token of an answer is held against all of them


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can escape one, Python can hold one, no tokenizer takes one
        raise ValueError(f"character {error.start} is half of a surrogate pair") from error
    return text


def _short(stop: str) -> str:
    if len(stop) > MAX_STOP_CHARACTERS:
        raise ValueError(f"a stop string has {len(stop):,} characters; {MAX_STOP_CHARACTERS} may be")
    return stop


def _few(biases: object) -> object:
    if isinstance(biases, dict) and len(biases) > MAX_BIASES:
        raise ValueError(f"{len(biases):,} tokens are biased; {MAX_BIASES:,} may be")
    return biases


# Lists end at their first mistake: 4 MiB of mistakes, each with its message, would be gigabytes.
TokenId = Annotated[int, Field(ge=0)]
Text = Annotated[str, AfterValidator(_encodable)]
StopString = Annotated[Text, StringConstraints(min_length=1), AfterValidator(_short)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]

# The values besides None that ask for nothing.
_UNSUPPORTED_EVERYWHERE: Mapping[str, tuple[object, ...]] = {
    "bad_words": ([],),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1, 1.0),
    "min_tokens": (0,),
    "prompt_logprobs": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "return_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "structured_outputs": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}
_UNSUPPORTED_IN_COMPLETIONS: Mapping[str, tuple[object, ...]] = {
    "best_of": (1,),
    "prompt_embeds": (),
    "suffix": ("",),
}
_UNSUPPORTED_IN_CHAT: Mapping[str, tuple[object, ...]] = {
    "add_generation_prompt": (True,),
    "audio": (),
    "chat_template": (),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}


class StreamOptions(BaseModel):
    """How a stream ends."""

    include_usage: bool = False


class VariantChoice(BaseModel):
    """The part of a request that says which size of the model it wants."""

    model: str | None = None
    sparsity: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] | Literal["auto"] | None = None
    allow_unsafe: bool = False
    max_accuracy_drop: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None

    def ask(self) -> Ask:
        """For the policy. Raises InvalidValueError: `max_accuracy_drop` is for "auto" alone."""
        if self.max_accuracy_drop is not None and self.sparsity != AUTO:
            raise InvalidValueError(
                'max_accuracy_drop is for "sparsity": "auto": leave it out, or ask for that',
                param="max_accuracy_drop",
            )
        return Ask(self.model, self.sparsity, self.allow_unsafe, self.max_accuracy_drop)


class GenerationRequest(VariantChoice):
    """What completions and chat have in common. The rest of the body is kept to be checked."""

    model_config = ConfigDict(extra="allow")
    unsupported: ClassVar[Mapping[str, tuple[object, ...]]] = _UNSUPPORTED_EVERYWHERE

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10, allow_inf_nan=False)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16, fail_fast=True)] | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool = False
    stop_on_loop: bool = False
    logit_bias: Annotated[dict[TokenId, Bias], BeforeValidator(_few)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for streams: set stream to true or leave them out")
        return self

    @property
    def num_choices(self) -> int:
        return 1 if self.n is None else self.n

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def check_supported(self) -> None:
        """Raises UnsupportedFieldError for the first field that asks for what is not implemented."""
        for name, value in (self.model_extra or {}).items():
            neutral = self.unsupported.get(name)
            if neutral is not None and value is not None and value not in neutral:
                raise UnsupportedFieldError(f"{name} is not implemented: leave it out", param=name)

    def sampling(self, *, max_tokens: int, logprobs: int | None) -> SamplingParams:
        """For the engine; `max_tokens` and `logprobs` are spelled differently in each API."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=_given(self.temperature, 1.0),
            top_k=max(_given(self.top_k, 0), 0),  # vLLM's clients write "all" as -1
            top_p=_given(self.top_p, 1.0),
            min_p=_given(self.min_p, 0.0),
            repetition_penalty=_given(self.repetition_penalty, 1.0),
            presence_penalty=_given(self.presence_penalty, 0.0),
            frequency_penalty=_given(self.frequency_penalty, 0.0),
            seed=self.seed,
            stop=tuple(stop),
            stop_token_ids=frozenset(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos,
            stop_on_loop=self.stop_on_loop,
            logprobs=logprobs,
            logit_bias=dict(self.logit_bias or {}),
        )


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    unsupported = {**_UNSUPPORTED_EVERYWHERE, **_UNSUPPORTED_IN_COMPLETIONS}

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
        | Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    )
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = None

    @model_validator(mode="after")
    def _something_is_asked_for(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens 0 generates nothing: set echo to true or ask for 1 and more")
        return self

    @property
    def scoring(self) -> ScoringParams | None:
        """For the engine: log-probabilities of the prompt, where it is echoed with them."""
        return ScoringParams(top=self.logprobs) if self.echo and self.logprobs is not None else None

    def prompts(self) -> list[str | list[int]]:
        """Each prompt by itself, as text or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]  # one prompt, of token ids
        return list(self.prompt)


class ContentPart(BaseModel):
    """A piece of a message. Only text is implemented."""

    type: str
    text: Text | None = None


class Message(BaseModel):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: Text | Annotated[list[ContentPart], Field(fail_fast=True)]
    name: Text | None = None

    def for_template(self) -> dict[str, str]:
        """As chat templates want it; text parts are joined by newlines."""
        content = self.content
        if not isinstance(content, str):
            content = "\n".join(part.text or "" for part in content)
        return {"role": self.role, "content": content, **({"name": self.name} if self.name else {})}


TemplateVariables = dict[str, bool | int | float | Text]
Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True)]


class ChatCompletionRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    unsupported = {**_UNSUPPORTED_EVERYWHERE, **_UNSUPPORTED_IN_CHAT}

    messages: Messages
    chat_template_kwargs: TemplateVariables | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> "ChatCompletionRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs want logprobs: set logprobs to true")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise ValueError("max_tokens and max_completion_tokens differ: give one of them")
        return self

    def template_messages(self) -> list[dict[str, str]]:
        """For the chat template. Raises UnsupportedFieldError for images, sound and files."""
        return _template_messages(self.messages)

    @property
    def answer_limit(self) -> int | None:
        """Tokens asked for at most, None for all that fit."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        """For the engine: None, or the number of alternatives."""
        return (self.top_logprobs or 0) if self.logprobs else None


class TokenizeRequest(BaseModel):
    """POST /tokenize: a prompt, or the messages of a chat."""

    prompt: Text | None = None
    messages: Messages | None = None
    chat_template_kwargs: TemplateVariables | None = None
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _one_of_both(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self

    def template_messages(self) -> list[dict[str, str]]:
        """For the chat template. Raises UnsupportedFieldError for images, sound and files."""
        return _template_messages(self.messages or [])


class AddVariantRequest(BaseModel):
    """POST /admin/variants."""

    model_config = ConfigDict(extra="forbid")

    sparsity: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
    delta: Annotated[str, Field(min_length=1)] | None = None


class RunProbesRequest(BaseModel):
    """POST /admin/probes/run."""

    model_config = ConfigDict(extra="forbid")

    variants: Annotated[list[str], Field(min_length=1, fail_fast=True)] | None = None
    items: Annotated[int, Field(ge=1, le=MAX_RUN_ITEMS)] = 100


def _template_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    for i, message in enumerate(messages):
        for j, part in enumerate(message.content):
            if isinstance(part, ContentPart) and (part.type != "text" or part.text is None):
                raise UnsupportedFieldError(
                    f"content of type {part.type!r} is not implemented: send text",
                    param=f"messages.{i}.content.{j}",
                )
    return [message.for_template() for message in messages]


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value
