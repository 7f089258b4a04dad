"""Prompts become exactly the model's tokens, or an error that says why not."""

import asyncio
from datetime import datetime

import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from pruning.chat_prompts import prompt_token_ids
from server.errors import InvalidValueError
from server.tokenization import PromptTokenizer
from tests.tiny import byte_tokenizer

MESSAGES = [{"role": "user", "content": "hé"}]


def measured(plain: PreTrainedTokenizerFast) -> list[int]:
    """How a message is encoded where something is measured: by a server, and the same without one."""
    token_ids = asyncio.run(PromptTokenizer(plain, vocab_size=300).encode_measured("hé"))
    assert prompt_token_ids(plain, "hé") == token_ids
    return token_ids


def test_text_and_ids_are_encoded_alike() -> None:
    tokenizer = PromptTokenizer(byte_tokenizer(), vocab_size=300)
    token_ids = asyncio.run(tokenizer.encode("hé\n", "prompt"))
    assert len(token_ids) == 4
    assert asyncio.run(tokenizer.encode(token_ids, "prompt")) == token_ids


def test_a_chat_is_rendered_up_to_the_answer() -> None:
    plain = byte_tokenizer()
    tokenizer = PromptTokenizer(plain, vocab_size=300)
    token_ids = asyncio.run(tokenizer.encode_chat(MESSAGES))
    assert plain.decode(token_ids) == "<|im_start|>user\nhé<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_that_asks_for_the_date_is_told_today_but_where_something_is_measured() -> None:
    """Else what is measured would be of other prompts every day."""
    plain = byte_tokenizer()
    plain.chat_template = "{{ strftime_now('%Y-%m-%d') }} {{ messages[0].content }}"
    assert plain.decode(measured(plain)) == "2026-01-01 hé"
    tokenizer = PromptTokenizer(plain, vocab_size=300)
    asked = plain.decode(asyncio.run(tokenizer.encode_chat(MESSAGES)))
    assert asked == f"{datetime.now():%Y-%m-%d} hé"


def test_a_model_that_thinks_first_does_not_where_it_is_measured_and_does_as_its_users_say() -> None:
    """As Qwen3's: without the variable it thinks, and its answers would be cut off within their thoughts."""
    plain = byte_tokenizer()
    plain.chat_template = "{{ messages[0].content }}{% if enable_thinking is not false %}<think>{% endif %}"
    assert plain.decode(measured(plain)) == "hé"
    tokenizer = PromptTokenizer(plain, vocab_size=300)
    for variables, text in (({}, "hé<think>"), ({"enable_thinking": True}, "hé<think>")):
        assert plain.decode(asyncio.run(tokenizer.encode_chat(MESSAGES, variables))) == text
    assert asyncio.run(tokenizer.encode_chat(MESSAGES, {"enable_thinking": False})) == measured(plain)


@pytest.mark.parametrize(
    "name", ["enable_thinkin", "chat_template", "messages", "think", "own", "raise_exception", "a b", ""]
)
def test_variables_that_are_none_of_the_template_are_refused(name: str) -> None:
    plain = byte_tokenizer()
    plain.chat_template = (
        "{% set own = 1 %}{% generation %}{{ messages }}{{ own }} a b <think>{% endgeneration %}"
        "{% if enable_thinking is defined %}{{ raise_exception('chat_template') }}{% endif %}"
    )
    with pytest.raises(InvalidValueError, match=f"has no variable '{name}', only enable_thinking:") as caught:
        asyncio.run(PromptTokenizer(plain, vocab_size=300).encode_chat(MESSAGES, {name: True}))
    assert caught.value.param == "chat_template_kwargs"


def test_values_with_which_a_template_can_do_nothing_are_a_mistake_of_the_request() -> None:
    plain = byte_tokenizer()
    plain.chat_template = "{{ budget + 1 }}"
    with pytest.raises(InvalidValueError, match="cannot do with these values"):
        asyncio.run(PromptTokenizer(plain, vocab_size=300).encode_chat(MESSAGES, {"budget": "much"}))


@pytest.mark.parametrize("prompt", ["", [], [300]])
def test_what_the_model_cannot_go_on_from_is_refused(prompt: str | list[int]) -> None:
    tokenizer = PromptTokenizer(byte_tokenizer(), vocab_size=300)
    with pytest.raises(InvalidValueError) as caught:
        asyncio.run(tokenizer.encode(prompt, "prompt"))
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("template", "told"),
    [(None, "use /v1/completions"), ("{{ raise_exception('roles alternate') }}", "roles")],
)
def test_a_template_that_is_missing_or_refuses_says_so(template: str | None, told: str) -> None:
    plain = byte_tokenizer()
    plain.chat_template = template
    with pytest.raises(InvalidValueError, match=told):
        asyncio.run(PromptTokenizer(plain, vocab_size=300).encode_chat(MESSAGES))


def test_text_whose_tokens_the_model_has_no_rows_for_is_refused() -> None:
    """Tokenizers of fine-tuned models may have more tokens than the embedding."""
    plain = byte_tokenizer()
    tokenizer = PromptTokenizer(plain, vocab_size=plain.vocab_size)
    plain.add_tokens("[PAD]", special_tokens=True)
    with pytest.raises(InvalidValueError, match="there is no token"):
        asyncio.run(tokenizer.encode("a [PAD]", "prompt"))


def test_a_token_keeps_the_space_before_it() -> None:
    """Of tokenizers that write it into the word and leave it out of a text's first."""
    model = BPE(vocab={"a": 0, "\u2581": 1, "\u2581a": 2}, merges=[("\u2581", "a")])
    plain = Tokenizer(model)
    plain.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PromptTokenizer(PreTrainedTokenizerFast(tokenizer_object=plain), vocab_size=3)
    assert [tokenizer.token_text(token_id) for token_id in (0, 2, 1)] == ["a", " a", " "]
    assert tokenizer.token_bytes(2) == [32, 97]


def test_part_of_a_character_has_no_bytes() -> None:
    plain = byte_tokenizer()
    tokenizer = PromptTokenizer(plain, vocab_size=300)
    half, letter = plain.encode("é")[0], plain.encode("h")[0]
    assert (tokenizer.token_text(half), tokenizer.token_bytes(half)) == ("\ufffd", None)
    assert (tokenizer.token_text(letter), tokenizer.token_bytes(letter)) == ("h", [104])
