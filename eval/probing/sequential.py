"""Sequential tests on paired differences: look after every item, and stop or go on as you like.

An item's difference is 1 where only the dense reference solved it, -1 where only the variant did, else 0; the
mean is the drop. All tests bet against a hypothesis about the drop, with bets of several sizes at once: while
it holds, nobody's wealth is expected to grow, so wealth of 1 / (1 - confidence) is as unlikely as that ratio
says (Ville's inequality). Betting on bounded means: Waudby-Smith and Ramdas, 2024, JRSS-B 86, p. 1, sections
3 and 4. Restarted bets: Shin, Ramdas and Rinaldo, 2024, "E-detectors", NEJSDS 2, p. 229.

Pure: knows nothing of variants, items or verdicts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Shares of the largest bet that cannot go bankrupt. Small ones win where nearly every item differs by chance,
# large ones where hardly any does.
BETS = (0.05, 0.15, 0.3, 0.5, 0.7, 0.9)
# Restarts are spread so thin that a false alarm within so many items is as unlikely as the confidence says.
HORIZON_ITEMS = 2_000


@dataclass
class Differences:
    """How often the reference alone, neither or both, and the variant alone solved an item."""

    lost: int = 0
    tied: int = 0
    regained: int = 0

    def add(self, difference: int) -> None:
        self.lost += difference == 1
        self.tied += difference == 0
        self.regained += difference == -1

    @property
    def items(self) -> int:
        return self.lost + self.tied + self.regained

    @property
    def mean(self) -> float:
        """The drop seen. Needs an item."""
        return (self.lost - self.regained) / self.items


def drop_bounds(differences: Differences, confidence: float = 0.95) -> tuple[float, float]:
    """A low and a high bound of the drop, in -1..1.

    Each by itself holds with `confidence` after all numbers of items at once: a confidence sequence, however
    often it is looked at. It supposes that the drop has not changed over these items.
    """
    n = differences
    return -_upper(n.regained, n.tied, n.lost, confidence), _upper(n.lost, n.tied, n.regained, confidence)


def _upper(lost: int, tied: int, regained: int, confidence: float) -> float:
    """The largest drop that bets against "at least so much" have not refuted. Wealth grows with the drop."""
    wanted = -math.log1p(-confidence)
    low, high = -1.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        refuted = _log_wealth(lost, tied, regained, middle) >= wanted
        low, high = (low, middle) if refuted else (middle, high)
    return high


def _log_wealth(lost: int, tied: int, regained: int, drop: float) -> float:
    """Of equal bets, together, that the mean is below `drop`, -1 < drop < 1."""
    logs = []
    for bet in BETS:
        stake = bet / (1 - drop)
        won = regained * math.log1p(stake * (drop + 1)) + tied * math.log1p(stake * drop)
        logs.append(won + lost * math.log1p(-bet))
    top = max(logs)
    return top + math.log(sum(math.exp(log - top) for log in logs) / len(logs))


class SafetyTest:
    """Tests whether the drop is at least `tolerance`; refuting that shows a variant to be safe.

    If the drop is that large, the probability of ever saying safe is at most 1 - confidence.
    """

    def __init__(self, tolerance: float, confidence: float) -> None:
        self._tolerance = tolerance
        self._bets = _Bets(confidence)

    @property
    def safe(self) -> bool:
        return self._bets.won

    def push(self, difference: int) -> bool:
        """Takes one new item's difference; True from the moment that safety is shown."""
        return self._bets.place(_gain(difference, self._tolerance, beyond=False))


class ChangeDetector:
    """Watches for a drop on the far side of a tolerance, from the first item on and from every later one.

    Half of the wealth is bet from the first item on, so that what was never true is found soon. As much again
    is dealt out over every 2,000 items (`HORIZON_ITEMS`) in bets that know nothing of what came before, so
    that a change is found after any number of items. While there is nothing to be found, wealth after n items
    is expected to be at most (1 + n / 2,000) / 2. Hence, with confidence 0.95, the probability of a false
    alarm within the first n items is at most 0.05 of that: 5% in 2,000 items, and 2.5 points for each 2,000
    more. That is at a drop right at the tolerance; away from it the probability is far smaller.

    Args:
        beyond: look for a drop beyond the tolerance; else for one within it.
    """

    def __init__(self, tolerance: float, confidence: float, *, beyond: bool) -> None:
        self.found = False
        self._beyond = beyond
        self._tolerance = tolerance
        self._wanted = 1 / (1 - confidence)
        self._wealth = [0.5 / len(BETS)] * len(BETS)

    def push(self, difference: int, expected: float | None = None) -> bool:
        """Takes one item's difference; True from the moment that the drop is shown to lie on the far side.

        Args:
            expected: the item's expected difference if nothing has changed, where that is known: one drawn
                from items seen before. It then takes a difference beyond that too.
        """
        if not self.found:
            gain = _gain(difference, self._bar(expected), beyond=self._beyond)
            self._wealth = [wealth * (1 + bet * gain) for wealth, bet in zip(self._wealth, BETS, strict=True)]
            self.found = sum(self._wealth) >= self._wanted
            fresh = 0.5 / HORIZON_ITEMS / len(BETS)
            self._wealth = [wealth + fresh for wealth in self._wealth]
        return self.found

    def _bar(self, expected: float | None) -> float:
        if expected is None:
            return self._tolerance
        return max(self._tolerance, expected) if self._beyond else min(self._tolerance, expected)


class AbilityWatch:
    """Watches whether the reference solves enough for a drop to say anything: more than a share `least`.

    By bets, as safety and changes are shown: if the share is at most `least`, the probability that it is ever
    called able for the first time is at most 1 - confidence. If it is more, that of being called unable is
    the probability of a false alarm of `ChangeDetector`.

    Attributes:
        able: None until either has been shown; after that it changes when the other one is.
    """

    def __init__(self, least: float, confidence: float) -> None:
        self.able: bool | None = None
        self._least = least
        self._confidence = confidence
        self._start()

    def push(self, solved: bool, expected: float | None = None) -> None:
        """Takes one item.

        Args:
            expected: of an item asked before: the share of all items that was solved so far. Such an item can
                show a change, but not what was never shown: that the reference is able at all.
        """
        may_gain = self.able is False or (self.able is None and expected is None)
        if may_gain and self._bets.place(_gain(int(solved), self._least, beyond=True)):
            self.able = True
            self._start()
        elif self.able is not False and self._loss.push(int(solved), expected):
            self.able = False
            self._start()

    def _start(self) -> None:
        self._bets = _Bets(self._confidence)
        self._loss = ChangeDetector(self._least, self._confidence, beyond=False)


class _Bets:
    """Bets of all sizes, placed on every item from the first on until they have refuted their hypothesis."""

    def __init__(self, confidence: float) -> None:
        self.won = False
        self._wanted = 1 / (1 - confidence)
        self._wealth = [1 / len(BETS)] * len(BETS)

    def place(self, gain: float) -> bool:
        if not self.won:
            self._wealth = [wealth * (1 + bet * gain) for wealth, bet in zip(self._wealth, BETS, strict=True)]
            self.won = sum(self._wealth) >= self._wanted
        return self.won


def likeliest_start(differences: Sequence[int], tolerance: float, *, beyond: bool) -> int:
    """The index from which to the end `differences` speak most for a drop beyond (or within) `tolerance`."""
    logs, best, start = [0.0] * len(BETS), -math.inf, len(differences) - 1
    for index in reversed(range(len(differences))):
        gain = _gain(differences[index], tolerance, beyond=beyond)
        logs = [log + math.log1p(bet * gain) for log, bet in zip(logs, BETS, strict=True)]
        if max(logs) > best:
            best, start = max(logs), index
    return start


def _gain(difference: int, bar: float, *, beyond: bool) -> float:
    """Of the whole stake on one item: -1 at the worst."""
    return (difference - bar) / (1 + bar) if beyond else (bar - difference) / (1 - bar)
