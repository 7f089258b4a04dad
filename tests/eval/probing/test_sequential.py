"""The sequential tests keep their error rates, have the power that the docs promise, and notice changes."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.probing.sequential import (
    AbilityWatch,
    ChangeDetector,
    Differences,
    SafetyTest,
    drop_bounds,
    likeliest_start,
)

TOLERANCE, CONFIDENCE = 0.03, 0.95


def differences(seed, drop, regained, count):
    """`regained`: share of items that the variant alone solves."""
    rng = random.Random(seed)
    for _ in range(count):
        draw = rng.random()
        yield 1 if draw < drop + regained else -1 if draw > 1 - regained else 0


def first(test, sequence):
    """After how many items the test says so; infinity for never."""
    return next((n for n, difference in enumerate(sequence, 1) if test.push(difference)), math.inf)


def degraded_after(seed, drop, regained, count, good=0):
    detector = ChangeDetector(TOLERANCE, CONFIDENCE, beyond=True)
    assert first(detector, differences(seed, 0.0, regained, good)) == math.inf
    return first(detector, differences(seed + 1_000, drop, regained, count))


def median(values):
    return sorted(values)[len(values) // 2]


@pytest.mark.parametrize(
    ("drop", "regained"), [(0.0, 0.01), (0.0, 0.1), (TOLERANCE, 0.002), (TOLERANCE, 0.03), (TOLERANCE, 0.2)]
)
def test_at_most_one_good_variant_in_twenty_is_called_degraded_in_2000_items(drop, regained):
    alarms = sum(degraded_after(seed, drop, regained, 2_000) < math.inf for seed in range(60))
    assert alarms <= 60 * 0.05 + 3  # 3 is the 97.5% quantile of what chance adds


@pytest.mark.parametrize(("drop", "regained"), [(TOLERANCE, 0.002), (TOLERANCE, 0.05), (0.06, 0.02)])
def test_at_most_one_bad_variant_in_twenty_is_called_safe(drop, regained):
    calls = sum(
        first(SafetyTest(TOLERANCE, CONFIDENCE), differences(seed, drop, regained, 2_000)) < math.inf
        for seed in range(60)
    )
    assert calls <= 60 * 0.05 + 3


def test_wealth_is_never_expected_to_grow_at_the_tolerance():
    """The guarantee itself, exactly: over all sequences of six items with the tolerance for a mean."""
    chance = {1: 0.13, 0: 0.77, -1: 0.10}
    expected = {"safe": 0.0, "degraded": 0.0}
    for code in range(3**6):
        sequence = [(code // 3**i) % 3 - 1 for i in range(6)]
        weight = math.prod(chance[difference] for difference in sequence)
        # Confidences out of reach, so that neither test ends early.
        safety, detector = SafetyTest(0.03, 1 - 1e-12), ChangeDetector(0.03, 1 - 1e-12, beyond=True)
        for difference in sequence:
            safety.push(difference)
            detector.push(difference)
        expected["safe"] += weight * sum(safety._bets._wealth)
        expected["degraded"] += weight * sum(detector._wealth)
    assert expected["safe"] == pytest.approx(1.0)
    assert expected["degraded"] == pytest.approx(0.5 + 6 / 4_000)


def test_ten_points_are_noticed_within_200_items():
    assert median([degraded_after(seed, 0.10, 0.01, 2_000) for seed in range(41)]) <= 200


def test_a_variant_that_breaks_after_2000_good_items_is_noticed():
    assert median([degraded_after(seed, 0.10, 0.01, 2_000, good=2_000) for seed in range(9)]) <= 400
    assert max(degraded_after(seed, 0.90, 0.01, 200, good=2_000) for seed in range(9)) <= 30


def test_a_good_variant_is_shown_to_be_safe():
    after = [
        first(SafetyTest(TOLERANCE, CONFIDENCE), differences(seed, 0.0, 0.01, 3_000)) for seed in range(41)
    ]
    assert median(after) <= 300


def test_a_mended_variant_is_noticed_as_one_that_breaks_is():
    detector = ChangeDetector(TOLERANCE, CONFIDENCE, beyond=False)
    assert first(detector, differences(1, 0.9, 0.0, 2_000)) == math.inf
    assert first(detector, differences(2, 0.0, 0.005, 1_000)) <= 600


@given(counts=st.tuples(*[st.integers(0, 300)] * 3), confidence=st.floats(0.5, 0.999))
def test_bounds_enclose_the_mean_and_mirror(counts, confidence):
    low, high = drop_bounds(Differences(*counts), confidence)
    mirrored_low, mirrored_high = drop_bounds(Differences(*reversed(counts)), confidence)
    assert (-mirrored_high, -mirrored_low) == (low, high)
    if sum(counts):
        assert -1 <= low <= Differences(*counts).mean <= high <= 1


def test_without_items_nothing_is_known():
    assert drop_bounds(Differences()) == (-1.0, 1.0)


@pytest.mark.parametrize("tolerance", [0.03, 0.1, 0.3])
@pytest.mark.parametrize("drop", [0.0, 0.05, 0.5])
def test_the_bound_and_the_test_are_one(drop, tolerance):
    """A tolerance lies above the bound exactly where the test against it has been won at that moment."""
    seen, test, won = Differences(), SafetyTest(tolerance, CONFIDENCE), False
    for difference in differences(seed=1, drop=drop, regained=0.002, count=600):
        seen.add(difference)
        won = test.push(difference)
        _, high = drop_bounds(seen, CONFIDENCE)
        if won:  # it stays won, while the bound may rise again
            assert high <= tolerance + 1e-9
            break
        assert high >= tolerance - 1e-9
    if drop != 0.05:
        assert won == (drop == 0.0)


def test_bounds_narrow_with_items_and_widen_with_confidence():
    def length(scale, confidence):
        low, high = drop_bounds(Differences(3 * scale, 95 * scale, 2 * scale), confidence)
        return high - low

    assert length(40, 0.95) < length(10, 0.95) < length(1, 0.95) < length(1, 0.99)


@pytest.mark.parametrize("drop", [0.0, 0.05])
def test_the_bounds_hold_at_all_times_at_once(drop):
    missed = 0
    for seed in range(60):
        seen = Differences()
        for n, difference in enumerate(differences(seed, drop, 0.02, 1_000), 1):
            seen.add(difference)
            if n % 50 == 0 and drop_bounds(seen, CONFIDENCE)[1] < drop:
                missed += 1
                break
    assert missed <= 60 * 0.05 + 3


def test_an_expected_difference_is_no_evidence():
    """Items that were lost before, lost again: nothing has changed, however often they are asked."""
    detector = ChangeDetector(TOLERANCE, CONFIDENCE, beyond=True)
    rng = random.Random(0)
    seen = [1] * 10 + [0] * 90
    assert not any(detector.push(rng.choice(seen), expected=0.1) for _ in range(2_000))
    assert first(detector, [1] * 50) < 50


def test_the_likeliest_start_is_where_it_broke():
    sequence = [*differences(3, 0.0, 0.01, 300), *differences(4, 0.8, 0.0, 40)]
    assert abs(likeliest_start(sequence, TOLERANCE, beyond=True) - 300) <= 5
    mended = [*differences(5, 0.8, 0.0, 300), *differences(6, 0.0, 0.01, 200)]
    assert abs(likeliest_start(mended, TOLERANCE, beyond=False) - 300) <= 5


def watched(watch, accuracy, count, seed=0, expected=None):
    """What the watch says after each of `count` items, of which the share `accuracy` is solved."""
    rng = random.Random(f"{seed}/{accuracy}")
    said = []
    for _ in range(count):
        watch.push(rng.random() < accuracy, expected)
        said.append(watch.able)
    return said


@pytest.mark.parametrize("accuracy", [0.0, 0.03, 0.06])
def test_at_most_one_hopeless_reference_in_twenty_is_called_able(accuracy):
    calls = sum(True in watched(AbilityWatch(0.06, CONFIDENCE), accuracy, 2_000, seed) for seed in range(60))
    assert calls <= 60 * 0.05 + 3


@pytest.mark.parametrize(("accuracy", "within"), [(0.95, 10), (0.5, 25), (0.2, 150)])
def test_an_able_reference_is_soon_known_and_not_called_unable(accuracy, within):
    for seed in range(20):
        said = watched(AbilityWatch(0.06, CONFIDENCE), accuracy, 2_000, seed)
        assert said.index(True) < within
        assert False not in said


def test_what_solves_nothing_is_known_to_within_100_items():
    assert watched(AbilityWatch(0.06, CONFIDENCE), 0.0, 100)[-1] is False


def test_an_ability_that_is_lost_is_missed_and_one_that_is_regained_is_found():
    watch = AbilityWatch(0.06, CONFIDENCE)
    assert watched(watch, 0.9, 3_000)[-1] is True
    assert watched(watch, 0.0, 200, seed=1).index(False) < 200
    assert watched(watch, 0.9, 30, seed=2)[-1] is True


def test_items_asked_again_show_a_change_of_ability_and_no_first_one():
    watch = AbilityWatch(0.06, CONFIDENCE)
    assert set(watched(watch, 0.9, 500, expected=0.9)) == {None}
    assert watched(watch, 0.9, 20)[-1] is True
    assert watched(watch, 0.0, 200, expected=0.9)[-1] is False
    assert watched(watch, 0.9, 30, expected=0.9)[-1] is True
