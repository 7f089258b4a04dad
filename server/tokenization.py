"""Prompts and chats to token ids, and single tokens to text for log-probabilities.

Knows the tokenizer and the size of the vocabulary; the text of answers is the engine's detokenizer's.
"""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

from jinja2 import TemplateError
from jinja2.defaults import DEFAULT_NAMESPACE
from starlette.concurrency import run_in_threadpool
from transformers import PreTrainedTokenizerBase

from pruning.chat_prompts import MEASUREMENT_VARIABLES, template_variables, timeless_template
from server.errors import InvalidValueError

VARIABLES_FIELD = "chat_template_kwargs"  # of a request; so it is called in vLLM
# What transformers hands to a template, and takes itself: no variables of a request.
_OWN_NAMES = frozenset(signature(PreTrainedTokenizerBase.apply_chat_template).parameters) | {
    *("messages", "raise_exception", "strftime_now"),
    *DEFAULT_NAMESPACE,
}
REPLACEMENT_CHARACTER = "\ufffd"  # what part of a character decodes to


class PromptTokenizer:
    """Encodes off the event loop: a long prompt would hold up every stream.

    Args:
        vocab_size: rows of the model's embedding; ids beyond it would crash the engine.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._anchor: int = tokenizer.encode("a", add_special_tokens=False)[-1]
        self._token_texts: dict[int, str] = {}
        template = tokenizer.get_chat_template() if tokenizer.chat_template else ""
        self._variables = template_variables(template) - _OWN_NAMES - tokenizer.special_tokens_map.keys()

    async def encode(
        self, prompt: str | list[int], param: str, *, add_special_tokens: bool = True
    ) -> list[int]:
        """Token ids of a prompt, checked: a tokenizer may know more tokens than the model.

        Raises:
            InvalidValueError: it has no tokens, or an id that the model does not know.
        """
        if isinstance(prompt, str):
            encode = self._tokenizer.encode
            token_ids = await run_in_threadpool(encode, prompt, add_special_tokens=add_special_tokens)
        else:
            token_ids = prompt
        self.check_ids(token_ids, param)
        if not token_ids:
            raise InvalidValueError(
                "the prompt has no tokens, and the model needs one to go on from", param=param
            )
        return list(token_ids)

    async def encode_chat(
        self, messages: list[dict[str, str]], variables: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Token ids of a chat up to where the assistant's answer begins.

        Args:
            variables: of the chat template, beside the messages.

        Raises:
            InvalidValueError: the model has no chat template, or that does not take messages or variables.
        """
        self._check_variables(variables or {})
        return await self._encode_chat(messages, None, variables or {})

    async def encode_measured(self, prompt: str) -> list[int]:
        """Of a user message by which something is measured, as `prompt_token_ids` does. Raises the same."""
        template = timeless_template(self._tokenizer) if self._tokenizer.chat_template else None
        return await self._encode_chat([{"role": "user", "content": prompt}], template, MEASUREMENT_VARIABLES)

    async def _encode_chat(
        self,
        messages: list[dict[str, str]],
        template: str | None,
        variables: Mapping[str, Any],
    ) -> list[int]:
        if not self._tokenizer.chat_template:
            raise InvalidValueError("this model has no chat template: use /v1/completions", param="messages")
        try:
            text = await run_in_threadpool(
                self._tokenizer.apply_chat_template,
                messages,
                add_generation_prompt=True,
                tokenize=False,
                chat_template=template,
                **variables,
            )
        except TemplateError as error:
            raise InvalidValueError(
                f"the model's chat template refuses: {error}", param="messages"
            ) from error
        except (TypeError, ValueError) as error:
            if not variables:
                raise
            raise InvalidValueError(
                f"the model's chat template cannot do with these values: {error}", param=VARIABLES_FIELD
            ) from error
        # The template writes the special tokens itself.
        return await self.encode(str(text), "messages", add_special_tokens=False)

    def _check_variables(self, variables: Mapping[str, Any]) -> None:
        """Whether the template reads them: another name is a mistake, or one of transformers' own."""
        for name in variables.keys() - self._variables:
            told = f"only {', '.join(sorted(self._variables))}" if self._variables else "and no other"
            raise InvalidValueError(
                f"the model's chat template has no variable {name!r}, {told}: leave it out",
                param=VARIABLES_FIELD,
            )

    def check_ids(self, token_ids: Sequence[int], param: str) -> None:
        """Raises InvalidValueError for an id that the model has no row for."""
        unknown = max(token_ids, default=-1)
        if unknown >= self._vocab_size:
            raise InvalidValueError(
                f"there is no token {unknown}: the model's vocabulary has {self._vocab_size:,}", param=param
            )

    def text(self, token_ids: Sequence[int]) -> str:
        """What the tokens of a prompt say, special ones too."""
        return str(self._tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False))

    def token_text(self, token_id: int) -> str:
        """A token as it stands within a text; part of a character shows as U+FFFD."""
        text = self._token_texts.get(token_id)
        if text is None:  # log-probabilities ask for the same few tokens over and over
            # Not by itself: decoders that write a space before each word leave out that of a text's first.
            before = self.text([self._anchor])
            both = self.text([self._anchor, token_id])
            text = both.removeprefix(before) if both.startswith(before) else self.text([token_id])
            self._token_texts[token_id] = text
        return text

    def token_bytes(self, token_id: int) -> list[int] | None:
        """The UTF-8 bytes of a token; None for part of a character."""
        text = self.token_text(token_id)
        return None if REPLACEMENT_CHARACTER in text else list(text.encode())
