"""Sequential tests on paired differences: look after every item, and stop or go on as you like.

An item's difference is 1 where only the dense reference solved it, -1 where only the variant did, else 0; the
mean is the drop. All tests bet against a hypothesis about the drop, with bets of several sizes at once: while
it holds, nobody's wealth is expected to grow, so wealth of 1 / (1 - confidence) is as unlikely as that ratio
says (Ville's inequality). Betting on bounded means: Waudby-Smith and Ramdas, 2024, JRSS-B 86, p. 1, sections
3 and 4. Restarted bets: Shin, Ramdas and Rinaldo, 2024, "E-detectors", NEJSDS 2, p. 229.

Pure: knows nothing of variants, items or verdicts.
"""

import math
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
        self.safe = False
        self._wanted = 1 / (1 - confidence)
        self._wealth = [1 / len(BETS)] * len(BETS)
        self._factors = {
            difference: [1 + bet * (tolerance - difference) / (1 - tolerance) for bet in BETS]
            for difference in (-1, 0, 1)
        }

    def push(self, difference: int) -> bool:
        """Takes one new item's difference; True from the moment that safety is shown."""
        if not self.safe:
            factors = self._factors[difference]
            self._wealth = [wealth * factor for wealth, factor in zip(self._wealth, factors, strict=True)]
            self.safe = sum(self._wealth) >= self._wanted
        return self.safe


class DegradationDetector:
    """Tests whether the drop is at most `tolerance`, from the first item on and from every later one at once.

    Half of the wealth is bet from the first item on, so that a variant that was never good is found soon. As
    much again is dealt out over every 2,000 items (`HORIZON_ITEMS`) in bets that know nothing of what came
    before, so that a variant that breaks is found after any number of good items. While the drop is within
    the tolerance, wealth after n items is expected to be at most (1 + n / 2,000) / 2. Hence, with confidence
    0.95, the probability of a false alarm within the first n items is at most 0.05 of that: 5% in 2,000
    items, and 2.5 points for each 2,000 more. That is at a drop right at the tolerance; below it the
    probability is far smaller.
    """

    def __init__(self, tolerance: float, confidence: float) -> None:
        self.degraded = False
        self._tolerance = tolerance
        self._wanted = 1 / (1 - confidence)
        self._wealth = [0.5 / len(BETS)] * len(BETS)

    def push(self, difference: int, tolerance: float | None = None) -> bool:
        """Takes one item's difference; True from the moment that degradation is shown.

        Args:
            tolerance: another one for this item, known before it was answered.
        """
        if not self.degraded:
            bar = self._tolerance if tolerance is None else tolerance
            gain = (difference - bar) / (1 + bar)
            self._wealth = [wealth * (1 + bet * gain) for wealth, bet in zip(self._wealth, BETS, strict=True)]
            self.degraded = sum(self._wealth) >= self._wanted
            fresh = 0.5 / HORIZON_ITEMS / len(BETS)
            self._wealth = [wealth + fresh for wealth in self._wealth]
        return self.degraded
