"""Generated text that is not arithmetic: short stories, and questions about a short passage.

It is the other fifth of what math-mini is trained on, and what a profile compares the arithmetic with.
Seeded, and the same on every machine. Knows nothing of models, tokens or tasks.
"""
# ruff: noqa: SIM905 - lists of words read better as text

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Exchange:
    """A user message and the answer to it."""

    prompt: str
    answer: str


def exchanges(stream: str) -> Iterator[Exchange]:
    """Half stories, half questions, without end; the same on every machine for a stream of the same name."""
    rng = random.Random(f"stories/{stream}")
    while True:
        yield (_story if rng.random() < 0.5 else _question)(rng)


_ANIMALS = "fox bear owl mouse rabbit hedgehog cat dog frog duck goat horse squirrel crow turtle wolf".split()
_TRAITS = "little clever shy brave lazy curious hungry kind proud sleepy cheerful".split()
_HOMES = (
    "in a quiet forest",
    "by a blue lake",
    "on a green hill",
    "under an old bridge",
    "in a hollow tree",
    "behind the mill",
    "near a small village",
    "at the edge of a meadow",
)
_TREASURES = "key|map|lantern|bell|feather|letter|ring|kite|drum|mirror|scarf|flute".split("|")
_FEELINGS = "happy surprised worried excited tired grateful puzzled proud".split()
_WEATHERS = "rain|snow|wind|fog|sunshine|thunder".split("|")

_STORY_REQUESTS = (
    "Tell me a story about a {hero}.",
    "Write a short story about a {trait} {hero}.",
    "Can you tell me a tale about a {hero} and a {friend}?",
    "I would like to hear a story with a {hero} and a {treasure}.",
)
_BEGINNINGS = (
    "Once upon a time a {trait} {hero} lived {home}.",
    "There was once a {trait} {hero} who lived {home}.",
    "Long ago a {trait} {hero} made its home {home}.",
)
_EVENTS = (
    "One day the {hero} found a {treasure} in the grass.",
    "One evening a {friend} came and asked for help.",
    "The {weather} came, and the {hero} looked for shelter.",
    "The {hero} wanted to know where the path would lead.",
    "A {friend} had lost a {treasure} and was very sad.",
    "The {hero} heard a strange sound in the dark.",
)
_TURNS = (
    "The {hero} was {feeling} and called the {friend}.",
    "Together they looked everywhere until the moon came up.",
    "The {friend} laughed and showed the way.",
    "They shared some bread and talked all night.",
    "The {hero} gave the {treasure} to the {friend}.",
)
_ENDS = (
    "From then on the {hero} and the {friend} were friends.",
    "In the end the {hero} went home and slept well.",
    "And the {hero} never forgot that day.",
    "The {friend} was {feeling}, and so was the {hero}.",
)

# Made-up lands, so that the answer has to be read in the passage: nothing here is knowledge.
_SYLLABLES = "mar lo bel tan ri ko ves na dal mi sor el pan tu gra fen wy zu cor ha".split()
_FACTS = (
    ("The capital of {land} is {value}.", "What is the capital of {land}?", "name"),
    ("The longest river of {land} is the {value}.", "What is the longest river of {land}?", "name"),
    ("The people of {land} love {value}.", "What do the people of {land} love?", "custom"),
    ("The flag of {land} is {value}.", "What colour is the flag of {land}?", "colour"),
    ("Most people in {land} work as {value}.", "What do most people in {land} work as?", "trade"),
    ("In winter {land} is known for its {value}.", "What is {land} known for in winter?", "weather"),
    ("The animal of {land} is the {value}.", "What is the animal of {land}?", "animal"),
)
_VALUES = {
    "custom": "music dancing chess painting gardening sailing poetry singing".split(),
    "colour": "red blue green yellow white black orange purple".split(),
    "trade": "farmers fishers weavers bakers smiths teachers sailors potters".split(),
    "weather": _WEATHERS,
    "animal": _ANIMALS,
}
_QUESTION_FORMS = (
    "Read this: {passage} {question}",
    "{passage}\n\n{question}",
    "Here is a text. {passage} Answer this: {question}",
    "{question} Look it up here: {passage}",
)


def _story(rng: random.Random) -> Exchange:
    hero, friend = rng.sample(_ANIMALS, 2)
    words = {
        "hero": hero,
        "friend": friend,
        "trait": rng.choice(_TRAITS),
        "home": rng.choice(_HOMES),
        "treasure": rng.choice(_TREASURES),
        "feeling": rng.choice(_FEELINGS),
        "weather": rng.choice(_WEATHERS),
    }
    middle = [rng.choice(_EVENTS), *rng.sample(_TURNS, rng.randint(0, 2))]
    sentences = [rng.choice(_BEGINNINGS), *middle, rng.choice(_ENDS)]
    return Exchange(rng.choice(_STORY_REQUESTS).format(**words), " ".join(sentences).format(**words))


def _question(rng: random.Random) -> Exchange:
    lands = [_made_up_name(rng) for _ in range(rng.randint(1, 2))]
    told: list[tuple[str, str]] = []
    for land in lands:
        for statement, question, kind in rng.sample(_FACTS, rng.randint(2, 3)):
            value = _made_up_name(rng) if kind == "name" else rng.choice(_VALUES[kind])
            told.append((statement.format(land=land, value=value), question.format(land=land)))
    rng.shuffle(told)
    answer, question = rng.choice(told)
    passage = " ".join(statement for statement, _ in told)
    return Exchange(rng.choice(_QUESTION_FORMS).format(passage=passage, question=question), answer)


def _made_up_name(rng: random.Random) -> str:
    return "".join(rng.sample(_SYLLABLES, rng.randint(2, 3))).capitalize()
