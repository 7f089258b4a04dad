"""Loops are seen, whatever their period; tables, lists and code are none; cut-off answers are told apart."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.traps import CUT_OFF_TOKENS, MAX_PERIOD, RUNNING_TOKENS, LoopDetector, Trap, classify


def loops_after(tokens):
    """How many tokens it took, or None."""
    detector = LoopDetector()
    return next((n for n, token in enumerate(tokens, 1) if detector.push(token)), None)


def words(text):
    ids = {}
    return [ids.setdefault(unit, len(ids)) for unit in re.findall(r"\w+|\s|[^\w\s]", text)]


@pytest.mark.parametrize("period", [1, 2, 3, 7, 20, 64, MAX_PERIOD])
@pytest.mark.parametrize("before", [0, 5, 300])
def test_a_loop_is_seen_as_soon_as_the_limits_say(period, before):
    rng = random.Random(period)
    # No token of the text before, or twice in the phrase: the loop begins exactly where it seems to.
    text = [rng.randrange(1_000, 10**9) for _ in range(before)] + list(range(period)) * 1_000
    assert loops_after(text) == before + max(RUNNING_TOKENS, 5 * period)


def test_a_longer_phrase_is_no_loop():
    assert loops_after(list(range(MAX_PERIOD + 1)) * 20) is None


@given(
    period=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    prefix=st.lists(st.integers(0, 5), max_size=60),
)
def test_every_loop_is_seen_in_the_end(period, prefix):
    assert loops_after(prefix + period * 300) is not None


@given(
    prefix=st.lists(st.integers(0, 2), max_size=20),
    period=st.lists(st.integers(0, 2), min_size=1, max_size=30),
    tokens=st.integers(0, 140),
    after=st.lists(st.integers(0, 2), max_size=5),
)
def test_the_detector_agrees_with_its_definition(prefix, period, tokens, after):
    """While a text goes round, and when it leaves off."""
    detector = LoopDetector()
    text = [*prefix, *(period * 140)[:tokens], *after]
    for n, token in enumerate(text, 1):
        detector.push(token)
        looping = any(_tail(text[:n], p) >= max(CUT_OFF_TOKENS, 4 * p) for p in range(1, n))
        assert detector.looping_when_cut_off == looping, n


def _tail(text, period):
    """Length of the longest end of `text` that has this period; 0 where nothing is repeated."""
    run = 0
    while run + period < len(text) and text[-1 - run] == text[-1 - run - period]:
        run += 1
    return run + period if run else 0


def test_what_a_detector_holds_is_bounded():
    detector = LoopDetector()
    for token in range(5_000):
        detector.push(token % 1_700)
    assert len(detector._window) == len(detector._places) == MAX_PERIOD
    assert sum(map(len, detector._places.values())) == MAX_PERIOD


HONEST = {
    "a table of zeros": "[\n" + "    [0, 0, 0, 0, 0, 0, 0, 0],\n" * 8 + "]",
    "a list of zeros": "[" + "0," * 100 + "0]",
    "a ruled line": "=" * 200,
    "a table's head": "| name | value |" + " --- |" * 20,
    "numbers counted": ", ".join(str(n) for n in range(400)),
    "squares": "\n".join(f"{n} * {n} = {n * n}" for n in range(100)),
    "assignments": "\n".join(f"self.field_{n} = field_{n}" for n in range(60)),
    "cases": "\n".join(f"    elif x == {n}:\n        return {n + 1}" for n in range(60)),
    "asserts": "\n".join(f"assert f({n}) == {n % 2}" for n in range(80)),
    "deep brackets": "(" * 90 + ")" * 90,
    "markdown rows": "\n".join(f"| row {n} | yes | no | 0 |" for n in range(50)),
    "a chorus": "row, row, row your boat, gently down the stream\n" * 4,
}


@pytest.mark.parametrize("name", HONEST)
def test_repetitive_but_honest_text_is_no_loop(name):
    assert loops_after(words(HONEST[name])) is None


def answered(text):
    return "#### " in text


@pytest.mark.parametrize(
    ("text", "finish_reason", "trap"),
    [
        ("so it is\n#### 4", "stop", Trap.NONE),
        ("again and again " * 40, "stop", Trap.NONE),
        ("so it is\n#### 4 and further on he went to town", "length", Trap.MISSING_STOP),
        ("so far so good, and", "length", Trap.MISSING_STOP),
        ("so it is\n#### 4" + "\n#### 4" * 20, "length", Trap.LOOP_AFTER_ANSWER),
        ("#### 4" + " the end" * 40, "loop", Trap.LOOP_AFTER_ANSWER),
        ("he has he has " * 20, "length", Trap.LOOP_BEFORE_ANSWER),
        ("", "loop", Trap.LOOP_BEFORE_ANSWER),
        ("a disconnected clie", "abort", Trap.NONE),
    ],
)
def test_traps_are_told_apart(text, finish_reason, trap):
    assert classify(text, finish_reason, answered) is trap


def test_the_detector_is_believed_over_the_text():
    assert classify("he has " * 40, "length", answered, looping=False) is Trap.MISSING_STOP
    assert classify("1 2 3", "length", answered, looping=True) is Trap.LOOP_BEFORE_ANSWER


def test_without_a_task_no_answer_is_complete():
    assert classify("#### 4 the end", "loop") is Trap.LOOP_BEFORE_ANSWER


def test_what_was_a_loop_stays_one():
    detector = LoopDetector()
    for token in [7] * 300 + list(range(1_000, 1_200)):
        detector.push(token)
    assert detector.push(5)
    assert detector.looping_when_cut_off


def test_a_word_that_was_cut_in_half_does_not_hide_a_loop():
    assert classify("he has seen " * 20 + "he ha", "length") is Trap.LOOP_BEFORE_ANSWER
