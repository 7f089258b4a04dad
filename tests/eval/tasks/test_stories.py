"""Distractor text is varied, complete, seeded, and its questions can be answered from the passage."""

import re
from itertools import islice

import pytest

from eval.tasks.stories import exchanges

HERO = re.compile(r"(?:about|with) a (?:\w+ )?(\w+)(?=[.?]| and a )")


@pytest.fixture(scope="module")
def sample():
    return list(islice(exchanges("4"), 600))


def is_question(exchange):
    return "?" in exchange.prompt and not exchange.prompt.startswith("Can you tell me a tale")


def test_no_placeholder_is_left_open(sample):
    assert not [e for e in sample if "{" in e.prompt + e.answer]


def test_half_are_questions_and_half_stories(sample):
    assert 0.4 < sum(map(is_question, sample)) / len(sample) < 0.6


def test_the_answer_to_a_question_is_a_sentence_of_its_passage(sample):
    for exchange in filter(is_question, sample):
        assert exchange.answer in exchange.prompt


def test_a_story_has_three_to_five_sentences_about_what_was_asked(sample):
    for exchange in sample:
        if not is_question(exchange):
            assert 3 <= exchange.answer.count(".") <= 5
            hero = HERO.search(exchange.prompt).group(1)
            assert hero in exchange.answer.split(".")[0]


def test_it_holds_no_arithmetic(sample):
    assert not [e for e in sample if any(c.isdigit() for c in e.prompt + e.answer)]


def test_it_is_varied_and_seeded(sample):
    assert len({e.prompt + e.answer for e in sample}) > 0.95 * len(sample)
    assert sample == list(islice(exchanges("4"), 600))
    assert sample != list(islice(exchanges("5"), 600))
