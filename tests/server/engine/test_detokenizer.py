"""Deltas joined are the text, cut at the first stop string, whatever the tokens."""

from hypothesis import given
from hypothesis import strategies as st

from server.engine.detokenizer import Detokenizer
from tests.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()._tokenizer


def deltas(token_ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    detokenizer = Detokenizer(TOKENIZER, TOKENIZER.encode("prompt").ids, stop)
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
