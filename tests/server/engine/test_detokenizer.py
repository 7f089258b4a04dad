"""Deltas joined are the text, cut at the first stop string, whatever the tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from server.engine.detokenizer import Detokenizer
from tests.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()._tokenizer


def byte_fallback_tokenizer() -> Tokenizer:
    """As Llama 2 and Mistral have it: words with a space before them, bytes for what is no word."""
    words = ["\u2581world", "\u2581say", "x"]
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {word: 256 + n for n, word in enumerate(words)}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[], byte_fallback=True))
    parts = [
        decoders.Replace("\u2581", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


FALLBACK = byte_fallback_tokenizer()
WORLD, SAY, X = 256, 257, 258


def fallback_answer(prompt: list[int], answer: list[int]) -> str:
    detokenizer = Detokenizer(FALLBACK, prompt, ())
    return "".join([*(detokenizer.push(token_id) for token_id in answer), detokenizer.flush()])


def deltas(
    token_ids: list[int], stop: tuple[str, ...] = (), prompt: list[int] | None = None
) -> tuple[list[str], bool]:
    detokenizer = Detokenizer(TOKENIZER, TOKENIZER.encode("prompt").ids if prompt is None else prompt, stop)
    pieces = []
    for token_id in token_ids:
        pieces.append(detokenizer.push(token_id))
        if detokenizer.stopped:
            return pieces, True
    pieces.append(detokenizer.flush())
    return pieces, detokenizer.stopped


@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_text_up_to_the_first_stop_string(text: str, stop: list[str]) -> None:
    pieces, stopped = deltas(TOKENIZER.encode(text).ids, tuple(stop))
    ends = [text.find(s) for s in stop if s in text]
    assert stopped == bool(ends)
    joined = "".join(pieces)
    if not ends:
        assert joined == text
    else:  # of two that overlap, the one that is complete first wins
        first = min((text.find(s) + len(s), text.find(s)) for s in stop if s in text)
        assert joined in {text[:end] for end in ends}
        assert len(joined) <= first[0]


@given(st.text(max_size=30))
def test_characters_are_never_split(text: str) -> None:
    pieces, _ = deltas(TOKENIZER.encode(text).ids)
    assert "�" not in "".join(pieces).replace("�" * text.count("�"), "")
    assert all(piece in text for piece in pieces)


def test_an_unfinished_character_ends_as_a_replacement() -> None:
    ids = TOKENIZER.encode("a€").ids
    assert deltas(ids[:-1])[0] == ["a", "", "", "�"]


def test_text_that_may_begin_a_stop_string_waits() -> None:
    ids = TOKENIZER.encode("x##y##!").ids
    assert deltas(ids, ("##!",)) == (["x", "", "", "##y", "", "", ""], True)


def test_special_tokens_are_no_text() -> None:
    end = TOKENIZER.token_to_id("<|im_end|>")
    assert "".join(deltas([*TOKENIZER.encode("hi").ids, end])[0]) == "hi"


@given(st.text(max_size=12), st.text(min_size=1, max_size=12), st.integers(0, 3))
def test_a_prompt_that_ends_inside_a_character_is_not_said_again(prompt: str, answer: str, cut: int) -> None:
    """The character that the answer completes is the answer's, and all before it the prompt's alone."""
    before, after = TOKENIZER.encode(prompt).ids, TOKENIZER.encode(answer).ids
    cut = min(cut, len(answer[0].encode()) - 1)
    pieces, _ = deltas(after[cut:], prompt=before + after[:cut])
    assert "".join(pieces) == answer


@pytest.mark.parametrize("prompt", ["what is \ufffd", "\ufffd" * 5])
def test_replacement_characters_at_a_prompts_end_are_not_said_again(prompt: str) -> None:
    assert "".join(deltas(TOKENIZER.encode(" it?").ids, prompt=TOKENIZER.encode(prompt).ids)[0]) == " it?"


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_a_prompt_of_bytes_is_not_said_again(length: int) -> None:
    """However many of them the tail begins with."""
    prompt = list(("\u597d" * length).encode())
    assert fallback_answer([SAY, *prompt], [WORLD, X]) == " worldx"
    assert fallback_answer([SAY, *prompt], [*"\u4f60\u597d".encode(), X]) == "\u4f60\u597dx"
    assert fallback_answer([SAY, *prompt[:-1]], [*prompt[-1:], X]) == "\u597dx"


def test_bytes_that_become_half_a_character_do_not_end_an_answer() -> None:
    """The decoder takes back what it said of a run of bytes as soon as one of them fits nothing."""
    answer = fallback_answer([SAY], [*"\u00e9".encode(), 0xE4, WORLD, X])
    assert answer.startswith("\u00e9")
    assert answer.endswith(" worldx")


@pytest.mark.parametrize("token_ids", [[0xB8], [0xE4], [0xE4, 0xB8], [0xFF], [0xF0, 0x9F, 0x98]], ids=str)
def test_what_never_becomes_a_character_is_not_waited_for(token_ids: list[int]) -> None:
    """Each step decodes all that waits, so that an answer of such tokens would take time with its square."""
    detokenizer, text, token_ids = Detokenizer(TOKENIZER, (), ()), "", token_ids * 100
    for token_id in token_ids:
        text += detokenizer.push(token_id)
        assert len(detokenizer._pending) <= 32
    for token_id in TOKENIZER.encode("\u20acuro").ids:
        text += detokenizer.push(token_id)
    assert text + detokenizer.flush() == TOKENIZER.decode(token_ids) + "\u20acuro"


def test_special_tokens_are_not_waited_for_either() -> None:
    [special, *_] = TOKENIZER.get_added_tokens_decoder()
    euro = TOKENIZER.encode("\u20ac").ids
    detokenizer = Detokenizer(TOKENIZER, (), ())
    pieces = []
    for token_id in [*euro[:1], *[special] * 100, *euro[1:]]:
        pieces.append(detokenizer.push(token_id))
        assert len(detokenizer._pending) < len(euro)
    assert "".join(pieces) == "\u20ac"
