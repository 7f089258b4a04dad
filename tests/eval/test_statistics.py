"""Intervals against published values and against their own laws."""

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.statistics import mcnemar_exact, minimum_detectable_drop, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_agrees_with_newcombe_1998_table_1(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(trials=st.integers(1, 10_000), share=st.floats(0, 1), confidence=st.floats(0.5, 0.999))
def test_wilson_contains_the_observed_share_and_mirrors(trials, share, confidence):
    successes = round(share * trials)
    low, high = wilson_interval(successes, trials, confidence)
    assert 0 <= low <= successes / trials <= high <= 1
    mirrored_low, mirrored_high = wilson_interval(trials - successes, trials, confidence)
    assert (1 - mirrored_high, 1 - mirrored_low) == pytest.approx((low, high), abs=1e-12)


def test_wilson_narrows_with_trials_and_widens_with_confidence():
    def length(trials, confidence):
        low, high = wilson_interval(trials // 2, trials, confidence)
        return high - low

    assert length(1_000, 0.95) < length(100, 0.95) < length(100, 0.99)


@pytest.mark.parametrize("arguments", [(0, 0), (-1, 5), (6, 5), (1, 5, 1.0), (1, 5, 0.0)])
def test_wilson_refuses_what_is_no_proportion(arguments):
    with pytest.raises(ValueError, match=r"must|takes"):
        wilson_interval(*arguments)


@pytest.mark.parametrize(("b", "c", "p"), [(1, 7, 0.070), (6, 16, 0.052)])
def test_mcnemar_agrees_with_fagerland_2013(b, c, p):
    """Airway measurements before and after a transplantation, and responses before and after treatment."""
    assert mcnemar_exact(b, c) == pytest.approx(p, abs=5e-4)


@given(b=st.integers(0, 400), c=st.integers(0, 400))
def test_mcnemar_is_twice_the_binomial_tail_and_symmetric(b, c):
    n, k = b + c, min(b, c)
    tail = sum(Fraction(math.comb(n, i), 2**n) for i in range(k + 1))
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b) == pytest.approx(float(min(1, 2 * tail)))


def test_mcnemar_without_discordant_pairs_shows_nothing():
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(0, 1_100) == pytest.approx(0.0)
    with pytest.raises(ValueError, match="never negative"):
        mcnemar_exact(-1, 3)


@pytest.mark.parametrize(
    ("items", "accuracy", "agreement"), [(200, 0.95, 0.0), (500, 0.95, 0.9), (300, 0.5, 0.5)]
)
def test_a_detectable_drop_is_detected_as_often_as_the_power_says(items, accuracy, agreement):
    drop = minimum_detectable_drop(items, accuracy, agreement=agreement)
    regained = (1 - agreement) * (accuracy - drop) * (1 - accuracy)
    lost = drop + regained
    rng, shown, rounds = random.Random(5), 0, 400
    for _ in range(rounds):
        draws = [rng.random() for _ in range(items)]
        b, c = sum(d < lost for d in draws), sum(d > 1 - regained for d in draws)
        shown += b > c and (b - c) / math.sqrt(b + c) > 1.6449
    assert shown / rounds == pytest.approx(0.8, abs=0.06)


def test_a_detectable_drop_shrinks_with_items_and_with_agreement():
    drops = [minimum_detectable_drop(n, 0.9) for n in (50, 100, 500, 5_000)]
    assert drops == sorted(drops, reverse=True)
    assert minimum_detectable_drop(500, 0.9, agreement=1.0) < minimum_detectable_drop(500, 0.9)
    assert minimum_detectable_drop(500, 0.9, power=0.95) > minimum_detectable_drop(500, 0.9)
    assert math.isnan(minimum_detectable_drop(2, 0.9))


@pytest.mark.parametrize(
    "arguments", [{"items": 0}, {"dense_accuracy": 0}, {"agreement": 1.1}, {"power": 1}, {"confidence": 0}]
)
def test_a_detectable_drop_wants_shares(arguments):
    with pytest.raises(ValueError, match=r"must|takes"):
        minimum_detectable_drop(**{"items": 10, "dense_accuracy": 0.9, **arguments})
