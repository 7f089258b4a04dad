"""The tokenizer encodes any text, digits one by one, and its template adds nothing that was not said."""

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data import turns
from training.tokenizer import train_tokenizer

TEXTS = [f"{prompt}\n{answer}" for prompt, answer in islice(turns(0), 1_000)]
TOKENIZER = train_tokenizer(TEXTS, vocab_size=600, context=256)


@given(st.text())
@settings(deadline=None)
def test_any_text_comes_back(text):
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


def test_digits_are_tokens_of_their_own():
    tokens = TOKENIZER.tokenize("1234 + 99 = 1333.5")
    assert [t for t in tokens if any(c.isdigit() for c in t)] == list("12349913335")
    assert all(sum(c.isdigit() for c in token) <= 1 for token in TOKENIZER.get_vocab())


def test_the_vocabulary_is_as_large_as_asked_and_its_words_are_short():
    assert len(TOKENIZER) == 600
    assert sum(len(TOKENIZER(text)["input_ids"]) for text in TEXTS) < 0.5 * sum(map(len, TEXTS))


@pytest.mark.parametrize("special", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
def test_special_tokens_are_single_and_skipped_in_text(special):
    ids = TOKENIZER(special)["input_ids"]
    assert len(ids) == 1
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == ""


def test_the_chat_template_is_chatml_without_a_default_system_message():
    message = {"role": "user", "content": "Hello"}
    text = TOKENIZER.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
