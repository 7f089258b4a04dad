"""What the counters stand at, as plain numbers, and what lies between two readings of a histogram.

Pure: whoever keeps the counters (server/monitoring/metrics.py) hands their samples in.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

Buckets = tuple[tuple[float, float], ...]  # (upper bound in seconds, observations up to it), bounds rising


@dataclass(frozen=True)
class Totals:
    """Since the start. Mappings are from a variant's name, one that was retired since among them.

    Attributes:
        requests: answers that have ended.
        rejections: HTTP requests refused.
        prompt_tokens, generation_tokens: taken in, and delivered.
        first_token_seconds, inter_token_seconds: of all variants together, cumulative.
    """

    requests: Mapping[str, int]
    rejections: int
    prompt_tokens: Mapping[str, int]
    generation_tokens: Mapping[str, int]
    first_token_seconds: Buckets
    inter_token_seconds: Buckets


class Sample(Protocol):
    """One line of a metrics page."""

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> Mapping[str, str]: ...

    @property
    def value(self) -> float: ...


def by_variant(samples: Iterable[Sample]) -> dict[str, int]:
    """A counter's values, summed over its other labels."""
    found: dict[str, int] = {}
    for sample in samples:
        variant = sample.labels["variant"]
        found[variant] = found.get(variant, 0) + int(sample.value)
    return found


def total(samples: Iterable[Sample]) -> int:
    """A counter's values, summed over all labels."""
    return int(sum(sample.value for sample in samples))


def buckets(samples: Iterable[Sample]) -> Buckets:
    """A histogram's cumulative counts, summed over all labels but the bound."""
    found: dict[float, float] = {}
    for sample in samples:
        if sample.name.endswith("_bucket"):
            bound = float(sample.labels["le"])
            found[bound] = found.get(bound, 0.0) + sample.value
    return tuple(sorted(found.items()))


def between(before: Buckets, after: Buckets) -> Buckets:
    """What was observed between two readings of the same histogram."""
    known = dict(before)
    return tuple((bound, count - known.get(bound, 0.0)) for bound, count in after)


def quantile(share: float, observed: Buckets) -> float | None:
    """As Prometheus' `histogram_quantile`: linear within a bucket, the last finite bound beyond it.

    Returns:
        None where nothing was observed.
    """
    assert 0 <= share <= 1
    if not observed or observed[-1][1] <= 0:
        return None
    rank = share * observed[-1][1]
    lower, below = 0.0, 0.0
    for bound, count in observed:
        if count >= rank and count > below:
            return lower if math.isinf(bound) else lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    raise AssertionError("the last bucket holds all")
