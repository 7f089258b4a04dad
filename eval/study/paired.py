"""Two models on the same items: how much accuracy one loses to the other, and where that is little enough.

Pure: right and wrong in, numbers out. For a number of items fixed beforehand; evidence that is looked at
while it grows is eval/probing/sequential.py's.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from eval.statistics import least_accuracy, mcnemar_exact, wilson_interval

_HALVINGS = 60  # of an interval of length 2: beyond what a float can tell


@dataclass(frozen=True)
class Comparison:
    """The dense model and a variant on the same items.

    Attributes:
        only_dense, only_variant: items that one of the two alone solved.
        p_value: exact McNemar test, two-sided, of both solving equally many.
        drop: accuracy lost to the dense model, as a share of the items.
        drop_low, drop_high: one-sided bounds of it, each with the confidence asked for.
    """

    items: int
    only_dense: int
    only_variant: int
    p_value: float
    drop: float
    drop_low: float
    drop_high: float


@dataclass(frozen=True)
class Threshold:
    """How much of a model may go.

    Attributes:
        sparsity: the largest one whose loss was shown to be within `tolerance`, all smaller ones that were
            studied included; 0 where none was.
        stopped_by: the first sparsity of which it could not be shown; None where there is none.
        items_needed: fewer items show nothing, even where no answer differs.
        dense_solved: of the items, by the dense model.
    """

    sparsity: float
    stopped_by: float | None
    tolerance: float
    confidence: float
    items: int
    items_needed: int
    dense_solved: int

    @property
    def has_something_to_lose(self) -> bool:
        """Whether the dense model is shown to solve more than `least_accuracy`, by its Wilson interval."""
        low, _ = wilson_interval(self.dense_solved, self.items, self.confidence)
        return low > least_accuracy(self.tolerance)

    @property
    def could_be_shown(self) -> bool:
        """Whether there were items enough to show anything, and something to lose."""
        return self.items >= self.items_needed and self.has_something_to_lose


def compare(dense: Sequence[bool], variant: Sequence[bool], confidence: float) -> Comparison:
    """Compares what each solved of the same items, in the same order. Raises ValueError without items."""
    pairs = list(zip(dense, variant, strict=True))
    only_dense = sum(first and not second for first, second in pairs)
    only_variant = sum(second and not first for first, second in pairs)
    low, high = drop_bounds(only_dense, only_variant, len(pairs), confidence)
    return Comparison(
        items=len(pairs),
        only_dense=only_dense,
        only_variant=only_variant,
        p_value=mcnemar_exact(only_dense, only_variant),
        drop=(only_dense - only_variant) / len(pairs),
        drop_low=low,
        drop_high=high,
    )


def drop_bounds(only_dense: int, only_variant: int, items: int, confidence: float) -> tuple[float, float]:
    """One-sided lower and upper bound of the drop; the true one lies beyond either with 1 - `confidence`.

    The score interval for the difference of paired proportions of Tango (1998, Statistics in Medicine 17,
    p. 891), the usual one to show that something new is not worse by more than a margin. Asymptotic: its
    coverage is close to nominal from some dozens of items on, but not where all that differs differs one way.
    There the exact bound of a share (Clopper and Pearson, 1934, Biometrika 26, p. 404) stands in if wider.

    Raises:
        ValueError: no items, or more discordant pairs than items.
    """
    if items < 1 or only_dense < 0 or only_variant < 0 or only_dense + only_variant > items:
        raise ValueError(
            f"{only_dense} and {only_variant} discordant pairs of {items} items; it takes items > 0, "
            "counts >= 0, and no more pairs than items"
        )
    z = NormalDist().inv_cdf(confidence)
    low = _root(only_dense, only_variant, items, z)
    high = _root(only_dense, only_variant, items, -z)
    if only_variant == 0:
        high = max(high, _exact_high(only_dense, items, confidence))
    if only_dense == 0:
        low = min(low, -_exact_high(only_variant, items, confidence))
    return low, high


def threshold(
    comparisons: Mapping[float, Comparison], dense_solved: int, tolerance: float, confidence: float
) -> Threshold:
    """The largest sparsity that is safe, by comparisons with bounds of `confidence`.

    Tested in the order of rising sparsity up to the first that fails: by such a fixed sequence the chance of
    calling any sparsity safe that is not stays at 1 - `confidence`, however many are tested. Where the
    dense model solves too little to lose, none is safe.
    """
    assert comparisons, "a study has at least one sparsity"
    items = min(comparison.items for comparison in comparisons.values())
    needed = items_needed(tolerance, confidence)
    none_safe = Threshold(0.0, min(comparisons), tolerance, confidence, items, needed, dense_solved)
    if not none_safe.has_something_to_lose:
        return none_safe
    safe, stopped_by = 0.0, None
    for sparsity in sorted(comparisons):
        if comparisons[sparsity].drop_high > tolerance:
            stopped_by = sparsity
            break
        safe = sparsity
    return replace(none_safe, sparsity=safe, stopped_by=stopped_by)


def items_needed(tolerance: float, confidence: float) -> int:
    """The fewest items on which a variant that answers just like the dense model is shown to be safe.

    Without discordant pairs the exact upper bound is 1 - (1 - confidence)^(1 / n).
    """
    return max(1, math.ceil(math.log(1 - confidence) / math.log(1 - tolerance)))


def _exact_high(count: int, items: int, confidence: float) -> float:
    """The share at which so few of the items would be found with 1 - `confidence`."""
    if count == items:
        return 1.0
    ways = [  # of so few, as logarithms: there may be more than a float holds
        math.lgamma(items + 1) - math.lgamma(k + 1) - math.lgamma(items - k + 1) for k in range(count + 1)
    ]

    def is_below(share: float) -> bool:
        yes, no = math.log(share), math.log1p(-share)
        chance = sum(math.exp(way + k * yes + (items - k) * no) for k, way in enumerate(ways))
        return chance > 1 - confidence

    return _bisect(count / items, 1.0, is_below)


def _root(only_dense: int, only_variant: int, items: int, z: float) -> float:
    """Where `_score`, which falls as the drop rises, passes `z`."""
    return _bisect(-1.0, 1.0, lambda drop: _score(only_dense, only_variant, items, drop) > z)


def _bisect(low: float, high: float, is_below: Callable[[float], bool]) -> float:
    """Where `is_below`, true at first, turns false."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if is_below(middle):
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _score(only_dense: int, only_variant: int, items: int, drop: float) -> float:
    """Tango's statistic: how far the observed drop lies above `drop`, in standard errors under `drop`."""
    share = _likeliest_share(only_dense, only_variant, items, drop)
    variance = items * (2 * share + drop * (1 - drop))
    difference = only_dense - only_variant - items * drop
    if variance <= 0:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / math.sqrt(variance)


def _likeliest_share(only_dense: int, only_variant: int, items: int, drop: float) -> float:
    """Of items that the variant alone solves, if the drop were `drop`: the root of Tango's equation."""
    a = 2 * items
    b = -only_dense - only_variant + (2 * items - only_dense + only_variant) * drop
    c = -only_variant * drop * (1 - drop)
    return (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
