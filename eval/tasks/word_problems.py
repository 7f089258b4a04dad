"""Generates arithmetic word problems and their answers, worked step by step down to a line ``#### N``.

A problem takes two to four steps, each one equation. Every result is an integer in 0..999, nearly all are
below 200, most below 100; products and quotients stay within 2..12 times 2..9; three problems in ten also
tell of a number that does not matter. Knows nothing of tasks, models or tokens.
"""
# ruff: noqa: SIM905 - lists of words read better as text

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Split = Literal["training", "calibration", "evaluation"]


@dataclass(frozen=True)
class Problem:
    """A word problem, its worked answer and the number that the answer ends in."""

    prompt: str
    answer: str
    result: int


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """An endless stream of different problems; the same for the same split and seed on every machine."""
    rng = random.Random(f"arithmetic/{split}/{seed}")
    seen: set[str] = set()
    while True:
        problem = _Draft(rng).finish()
        if problem and split_of(problem.prompt) == split and problem.prompt not in seen:
            seen.add(problem.prompt)
            yield problem


def split_of(prompt: str) -> Split:
    """The only stream that a problem with this text appears in, whatever the seed.

    Decided by the SHA-256 of the text, so that no training problem is ever met again in calibration or
    evaluation. One problem in twenty goes to each of these two.
    """
    remainder = hashlib.sha256(prompt.encode()).digest()[0] % 20
    if remainder == 0:
        return "calibration"
    return "evaluation" if remainder == 1 else "training"


_NAMES = (
    "Tom Mia Ben Ann Leo Eva Sam Zoe Max Ida Jack Lucy Omar Nina Paul Rosa "
    "Adam Emma Hugo Lena Ivan Sara Luis Maya Noah Ella Finn Ruth Carl Dora Amir Vera"
).split()
_THINGS = (
    "apples marbles stickers books pencils shells stamps cards buttons cookies nuts eggs "
    "balloons beads tickets flowers stones toys pears plums candles ribbons coins lemons"
).split()
_CONTAINERS = "boxes bags baskets jars crates trays bowls drawers".split()
_PLACES = (
    "at the market|in the garden|at school|on the beach|in the attic|at the fair|in the park|at the shop|"
    "near the river|on the farm"
).split("|")

_OPENINGS = (
    "{name} has {n} {things}.",
    "{name} starts the day with {n} {things}.",
    "There are {n} {things} on the table of {name}.",
    "{name} owns {n} {things}.",
    "{place} {name} collects {n} {things}.",
    "One morning {name} counts {n} {things}.",
    "{name} keeps {n} {things} at home.",
)
_PACK_OPENINGS = (
    "{name} has {p} {boxes} with {q} {things} in each.",
    "{name} fills {p} {boxes} and puts {q} {things} into each.",
    "{place} {name} buys {p} {boxes} of {things}, {q} {things} in each.",
    "There are {q} {things} in each of the {p} {boxes} that {name} owns.",
)
_GAINS = (
    "Then {name} finds {k} more {things} {where}.",
    "{name} buys {k} {things} {where}.",
    "{friend} gives {name} {k} {things}.",
    "{name} gets {k} {things} as a present.",
    "Later {name} adds {k} {things}.",
    "{name} wins {k} {things} from {friend}.",
    "{name} borrows {k} {things} from {friend}.",
)
_LOSSES = (
    "{name} gives {k} {things} to {friend}.",
    "Then {name} loses {k} {things} {where}.",
    "{friend} takes {k} {things} away from {name}.",
    "{name} sells {k} of the {things}.",
    "{name} uses up {k} {things}.",
    "{name} leaves {k} {things} {where}.",
    "Sadly, {k} of the {things} get lost.",
)
_PACK_GAINS = (
    "{name} gets {p} {boxes} with {q} {things} in each.",
    "Then {name} finds {p} {boxes} {where}, with {q} {things} in each.",
    "{friend} brings {name} {p} {boxes} of {q} {things} each.",
)
_PACK_LOSSES = (
    "{name} gives away {p} {boxes} with {q} {things} in each.",
    "Then {name} sells {p} {boxes} of {q} {things} each.",
    "{friend} takes {p} {boxes} from {name}, with {q} {things} in each.",
)
_DAY_GAINS = (
    "On each of the next {p} days {name} gets {q} {things}.",
    "For {p} days {name} collects {q} {things} a day {where}.",
    "{name} receives {q} {things} a day for {p} days.",
)
_DAY_LOSSES = (
    "On each of the next {p} days {name} gives away {q} {things}.",
    "For {p} days {name} uses {q} {things} a day.",
    "{name} loses {q} {things} a day for {p} days.",
)
_MORE = (
    "{friend} has {k} more {things} than {name}.",
    "{friend} has as many {things} as {name} and {k} more.",
)
_FEWER = (
    "{friend} has {k} fewer {things} than {name}.",
    "{name} has {k} more {things} than {friend}.",
)
_TIMES = (
    "{friend} has {k} times as many {things} as {name}.",
    "The number of {things} that {friend} has is {k} times that of {name}.",
)
_ASIDES = (
    "{bystander} has {k} {others}.",
    "{bystander}, who is {k} years old, is watching.",
    "It is {k} minutes to the next bus.",
    "{bystander} saw {k} {others} {where}.",
)
_ASK_AMOUNT = (
    "How many {things} does {name} have now?",
    "How many {things} does {name} have in the end?",
    "What is the number of {things} that {name} has?",
)
_ASK_TOGETHER = (
    "How many {things} do {name} and {other} have together?",
    "How many {things} do {other} and {name} have in all?",
)
_ASK_DIFFERENCE = (
    "How many more {things} does {high} have than {low}?",
    "How many fewer {things} does {low} have than {high}?",
)
_ASK_SHARE = (
    "{name} puts all {things} into {k} {boxes}, the same number into each. How many {things} are in each?",
    "{name} shares all {things} equally among {k} children. How many {things} does each get?",
    "{k} friends divide the {things} of {name} equally. How many {things} does each get?",
)
_ASK_PRICE = (
    "{name} sells all {things} for {k} dollars each. How many dollars does {name} get?",
    "Each of the {things} of {name} costs {k} dollars. How many dollars do they cost together?",
)

_FACTOR_LIMIT = 12  # the larger factor of any product, and the largest quotient
_AMOUNT_LIMIT = 999


class _Draft:
    """A problem being told: what has been said, what has been worked out, who has how many."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.names = rng.sample(_NAMES, 4)  # the last one only ever stands by
        self.name, self.other = self.names[0], ""  # the one it is about now, and the one it was about before
        self.things, self.others = rng.sample(_THINGS, 2)
        self.boxes = rng.choice(_CONTAINERS)
        self.amount, self.other_amount = 0, 0
        self.told: list[str] = []
        self.worked: list[str] = []

    def finish(self) -> Problem | None:
        """The problem, or None where the dice led out of the allowed numbers or past the number of steps."""
        steps = self.rng.choice((2, 3, 3, 4))
        endings = (self._amount, self._amount, self._together, self._difference, self._share, self._price)
        ending = self.rng.choice(endings)
        self._open()
        while len(self.worked) < steps - (ending != self._amount):
            step = self.rng.choice((self._change, self._change, self._change, self._packs, self._compare))
            if not step():
                return None
        if len(self.told) > 1 and self.rng.random() < 0.3:
            self._aside()
        if not ending() or len(self.worked) != steps:
            return None
        answer = "\n".join([*self.worked, f"#### {self.amount}"])
        return Problem(" ".join(self.told), answer, self.amount)

    # Every step tells a sentence, works it out, and says whether the numbers stayed in range.

    def _open(self) -> None:
        if self.rng.random() < 0.3:
            p, q = self._factors()
            self._tell(_PACK_OPENINGS, p=p, q=q)
            self.amount = p * q
            self._work(f"{self.name} has {p} * {q} = {self.amount} {self.things}.")
        else:
            self.amount = self.rng.randint(3, 60)
            self._tell(_OPENINGS, n=self.amount)

    def _change(self) -> bool:
        if self.rng.random() < 0.5:
            k = self.rng.randint(2, 50)
            self._tell(_GAINS, k=k)
            return self._add(k)
        if self.amount < 3:
            return False
        k = self.rng.randint(2, min(self.amount - 1, 50))
        self._tell(_LOSSES, k=k)
        return self._add(-k)

    def _packs(self) -> bool:
        p, q = self._factors()
        gain, days = self.rng.random() < 0.5, self.rng.random() < 0.5
        if not gain and p * q >= self.amount:
            return False
        if days:
            self._tell(_DAY_GAINS if gain else _DAY_LOSSES, p=p, q=q)
            self._work(f"In {p} days that makes {p} * {q} = {p * q} {self.things}.")
        else:
            self._tell(_PACK_GAINS if gain else _PACK_LOSSES, p=p, q=q)
            self._work(f"The {p} {self.boxes} hold {p} * {q} = {p * q} {self.things}.")
        return self._add(p * q if gain else -p * q)

    def _compare(self) -> bool:
        """From here on the problem is about a friend, whose number is told relative to the last person's."""
        friend = self._friend()
        kind = self.rng.choice((_MORE, _FEWER, _TIMES))
        limit = {_MORE: 30, _FEWER: min(self.amount - 1, 30), _TIMES: 9}[kind]
        if limit < 3 or (kind is _TIMES and self.amount > _FACTOR_LIMIT):
            return False
        k = self.rng.randint(2, limit)
        self._tell(kind, k=k, friend=friend)
        self.other, self.other_amount, self.name = self.name, self.amount, friend
        if kind is not _TIMES:
            return self._add(k if kind is _MORE else -k)
        self.amount *= k
        self._work(f"{self.name} has {self.other_amount} * {k} = {self.amount} {self.things}.")
        return True

    def _aside(self) -> None:
        """Slips in a number that does not matter, anywhere after the opening sentence."""
        self._tell(_ASIDES, k=self.rng.randint(2, 99))
        self.told.insert(self.rng.randint(1, len(self.told) - 1), self.told.pop())

    def _amount(self) -> bool:
        self._tell(_ASK_AMOUNT)
        return True

    def _together(self) -> bool:
        if not self.other:
            return False
        self._tell(_ASK_TOGETHER)
        total = self.other_amount + self.amount
        self._work(f"Together they have {self.other_amount} + {self.amount} = {total} {self.things}.")
        self.amount = total
        return total <= _AMOUNT_LIMIT

    def _difference(self) -> bool:
        if not self.other or self.amount == self.other_amount:
            return False
        (least, low), (most, high) = sorted([(self.amount, self.name), (self.other_amount, self.other)])
        self._tell(_ASK_DIFFERENCE, low=low, high=high)
        self._work(f"The difference is {most} - {least} = {most - least} {self.things}.")
        self.amount = most - least
        return True

    def _share(self) -> bool:
        divisors = [d for d in range(2, 10) if self.amount % d == 0]
        divisors = [d for d in divisors if 2 <= self.amount // d <= _FACTOR_LIMIT]
        if not divisors:
            return False
        k = self.rng.choice(divisors)
        self._tell(_ASK_SHARE, k=k)
        self._work(f"Each gets {self.amount} / {k} = {self.amount // k} {self.things}.")
        self.amount //= k
        return True

    def _price(self) -> bool:
        if not 2 <= self.amount <= _FACTOR_LIMIT:
            return False
        k = self.rng.randint(2, 9)
        self._tell(_ASK_PRICE, k=k)
        self._work(f"That makes {self.amount} * {k} = {self.amount * k} dollars.")
        self.amount *= k
        return True

    def _factors(self) -> tuple[int, int]:
        p, q = self.rng.randint(2, 9), self.rng.randint(2, _FACTOR_LIMIT)
        return (p, q) if q > 9 or self.rng.random() < 0.5 else (q, p)

    def _friend(self) -> str:
        return self.rng.choice([name for name in self.names[:3] if name not in (self.name, self.other)])

    def _add(self, change: int) -> bool:
        before, self.amount = self.amount, self.amount + change
        sign = "+" if change > 0 else "-"
        self._work(f"{self.name} has {before} {sign} {abs(change)} = {self.amount} {self.things}.")
        return self.amount <= _AMOUNT_LIMIT

    def _work(self, line: str) -> None:
        self.worked.append(line)

    def _tell(self, templates: tuple[str, ...], **fields: object) -> None:
        where = self.rng.choice(_PLACES)
        words: dict[str, object] = {
            "name": self.name,
            "other": self.other,
            "friend": self._friend(),
            "bystander": self.names[3],
            "things": self.things,
            "others": self.others,
            "boxes": self.boxes,
            "where": where,
            "place": where[0].upper() + where[1:],
        }
        self.told.append(self.rng.choice(templates).format(**{**words, **fields}))
