"""Two methods on the same items, and one beside the dense model. Pure."""

from dataclasses import dataclass

from eval.science.collect import Ground, Point
from eval.science.published import RANDOM_METHODS
from eval.statistics import mcnemar_exact

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Pair:
    """Items that one of two methods alone solved, and the exact McNemar test, two-sided."""

    only_this: int
    only_other: int

    @property
    def p_value(self) -> float:
        return mcnemar_exact(self.only_this, self.only_other)

    @property
    def is_shown_to_differ(self) -> bool:
        return self.p_value < SIGNIFICANT

    def __str__(self) -> str:
        return f"+{self.only_this} -{self.only_other}, p = {self.p_value:.2g}"


def pair(point: Point, other: Point) -> Pair:
    """Of one ground, so on the same items."""
    outcomes = list(zip(point.right, other.right, strict=True))
    return Pair(outcomes.count(("1", "0")), outcomes.count(("0", "1")))


def best_random(ground: Ground, sparsity: float) -> Point | None:
    """Of the seed that did better at this sparsity: what has to be beaten."""
    drawn = [ground.points.get((method, sparsity)) for method in RANDOM_METHODS]
    return max((p for p in drawn if p is not None), key=lambda p: p.score.correct, default=None)


def retained(ground: Ground, point: Point) -> float | None:
    """Share of the dense model's accuracy; None where that is unknown, or nothing."""
    dense = ground.dense
    return None if dense is None or dense.score.correct == 0 else point.score.correct / dense.score.correct
