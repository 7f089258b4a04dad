"""What lies between two readings of the counters, and quantiles of it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.monitoring.metrics import FIRST_TOKEN_SECONDS, Metrics
from server.monitoring.totals import Buckets, between, quantile

TWENTY: Buckets = ((0.1, 10), (0.5, 20), (1.0, 20), (math.inf, 20))


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.25, 0.05), (0.5, 0.1), (0.75, 0.3), (0.95, 0.46), (1.0, 0.5), (0.0, 0.0)],
)
def test_a_quantile_is_interpolated_as_prometheus_does(share: float, expected: float) -> None:
    assert quantile(share, TWENTY) == pytest.approx(expected)


def test_beyond_the_last_bound_is_the_last_bound() -> None:
    assert quantile(0.95, ((0.1, 1), (60.0, 1), (math.inf, 10))) == 60.0


def test_nothing_observed_is_no_quantile() -> None:
    assert quantile(0.5, ()) is None
    assert quantile(0.5, between(TWENTY, TWENTY)) is None


@given(st.lists(st.floats(1e-4, 59), min_size=1, max_size=40), st.sampled_from([0.01, 0.5, 0.95, 1.0]))
def test_a_quantile_lies_in_the_bucket_of_the_observation_of_its_rank(
    seconds: list[float], share: float
) -> None:
    metrics = Metrics()
    for value in seconds:
        metrics.tokens("m:s0", 1, first=True, seconds=value)
    ranked = sorted(seconds)[math.ceil(share * len(seconds) - 1e-9) - 1]
    upper = next(bound for bound in FIRST_TOKEN_SECONDS if ranked <= bound)
    lower = max((bound for bound in (0.0, *FIRST_TOKEN_SECONDS) if bound < upper), default=0.0)
    found = quantile(share, metrics.totals().first_token_seconds)
    assert found is not None
    assert lower - 1e-9 <= found <= upper + 1e-9


def test_totals_are_what_was_counted_for_all_variants_together() -> None:
    metrics = Metrics()
    for variant in ("m:s0", "m:s20"):
        metrics.declare(variant)
    before = metrics.totals()
    metrics.prompt("m:s0", 7)
    metrics.tokens("m:s0", 1, first=True, seconds=0.02)
    metrics.tokens("m:s20", 1, first=True, seconds=0.2)
    metrics.tokens("m:s20", 3, first=False, seconds=0.03)
    metrics.rejected("queue_full")
    metrics.rejected("unknown_url")
    after = metrics.totals()
    assert before.generation_tokens == before.prompt_tokens == before.requests == {"m:s0": 0, "m:s20": 0}
    assert after.prompt_tokens == {"m:s0": 7, "m:s20": 0}
    assert after.generation_tokens == {"m:s0": 1, "m:s20": 4}
    assert (before.rejections, after.rejections) == (0, 2)
    first = dict(between(before.first_token_seconds, after.first_token_seconds))
    assert (first[0.01], first[0.025], first[0.1], first[0.25], first[math.inf]) == (0, 1, 1, 2, 2)
    later = dict(between(before.inter_token_seconds, after.inter_token_seconds))
    assert (later[0.005], later[0.01], later[math.inf]) == (0, 3, 3)
