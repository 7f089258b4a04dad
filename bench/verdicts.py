"""How many items a verdict takes, and how often it is wrong: `python -m bench.verdicts`.

Made-up outcomes, so no model and no machine matters; the figures in docs/decisions/005 come from here.
"""

import json
import math
import random
from collections.abc import Iterator

from eval.probing.sequential import ChangeDetector, SafetyTest
from eval.probing.verdicts import Criterion

CRITERION = Criterion()
VARIANTS = 400
MAX_ITEMS = 8_000
Test = ChangeDetector | SafetyTest


def main() -> None:
    """Prints one JSON line for each case."""
    for regained in (0.002, 0.01, 0.02, 0.1, 0.2):
        for drop in (0.0, CRITERION.tolerance, 0.06, 0.1, 0.3):
            degraded = [_items(_detector(), _differences(seed, drop, regained)) for seed in range(VARIANTS)]
            safe = [_items(_safety(), _differences(seed, drop, regained)) for seed in range(VARIANTS)]
            _print("from the first item", regained, drop, degraded=degraded, safe=safe)
    for drop in (0.1, 0.3, 0.9):
        _print(
            "after 5,000 good items",
            0.01,
            drop,
            degraded=[_broken(seed, drop) for seed in range(VARIANTS // 4)],
        )


def _broken(seed: int, drop: float) -> float:
    """Items from the moment that a good variant breaks; infinity where it was called degraded before."""
    detector = _detector()
    if _items(detector, _differences(seed, 0.0, 0.01), 5_000) < math.inf:
        return math.inf
    return _items(detector, _differences(seed + VARIANTS, drop, 0.01))


def _detector() -> ChangeDetector:
    return ChangeDetector(CRITERION.tolerance, CRITERION.confidence, beyond=True)


def _safety() -> SafetyTest:
    return SafetyTest(CRITERION.tolerance, CRITERION.confidence)


def _differences(seed: int, drop: float, regained: float) -> Iterator[int]:
    rng = random.Random(seed)
    while True:
        draw = rng.random()
        yield 1 if draw < drop + regained else -1 if draw > 1 - regained else 0


def _items(test: Test, differences: Iterator[int], at_most: int = MAX_ITEMS) -> float:
    return next((n for n, d in zip(range(1, at_most + 1), differences) if test.push(d)), math.inf)  # noqa: B905


def _print(case: str, regained: float, drop: float, **items: list[float]) -> None:
    found: dict[str, object] = {"case": case, "regained": regained, "drop": drop}
    for verdict, counts in items.items():
        counts.sort()
        share = sum(count <= 2_000 for count in counts) / len(counts)
        found[verdict] = {"within_2000": share, "median": _told(counts, 0.5), "90%": _told(counts, 0.9)}
    print(json.dumps(found), flush=True)


def _told(counts: list[float], quantile: float) -> float | None:
    count = counts[int(quantile * len(counts))]
    return None if count == math.inf else count


if __name__ == "__main__":
    main()
