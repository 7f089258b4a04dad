"""The loss against the dense model, its bounds, and the threshold that follows."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.study.paired import Comparison, _likeliest_share, compare, drop_bounds, items_needed, threshold


def table(**bounds: float) -> dict[float, Comparison]:
    """Comparisons by hand: s20=0.01 is sparsity 0.2 with an upper bound of one point."""
    return {
        int(name[1:]) / 100: Comparison(200, 1, 1, 1.0, 0.0, -0.01, high) for name, high in bounds.items()
    }


def test_a_comparison_counts_what_one_of_the_two_alone_solved() -> None:
    dense = [True, True, True, False, True, False]
    variant = [True, False, False, True, True, False]
    found = compare(dense, variant, 0.95)
    assert (found.items, found.only_dense, found.only_variant) == (6, 2, 1)
    assert found.drop == pytest.approx(1 / 6)
    assert found.drop_low < found.drop < found.drop_high


def test_a_comparison_wants_the_same_items() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare([True, False], [True], 0.95)


@given(st.integers(1, 60), st.data())
def test_swapping_the_two_turns_the_bounds_round(items: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, items))
    second = data.draw(st.integers(0, items - first))
    low, high = drop_bounds(first, second, items, 0.95)
    assert (low, high) == pytest.approx(
        tuple(-end for end in reversed(drop_bounds(second, first, items, 0.95)))
    )
    assert -1 <= low <= (first - second) / items <= high <= 1


@given(st.integers(1, 40), st.integers(0, 20), st.floats(0.0, 0.95))
def test_the_restricted_likelihood_is_at_its_highest(only_dense: int, only_variant: int, drop: float) -> None:
    """Tango's root is the maximum of the multinomial likelihood with the drop held fixed."""
    items = only_dense + only_variant + 25

    def likelihood(share: float) -> float:  # of items that the variant alone solves
        cells = ((only_dense, share + drop), (only_variant, share), (25, 1 - 2 * share - drop))
        return sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

    root = _likeliest_share(only_dense, only_variant, items, drop)
    grid = [(1 - drop) / 2 * step / 400 for step in range(1, 400)]
    assert likelihood(root) >= max(map(likelihood, grid)) - 1e-6


@pytest.mark.parametrize(("drop", "regained"), [(0.03, 0.0), (0.03, 0.02), (0.1, 0.05)])
def test_the_upper_bound_holds_as_often_as_it_says(drop: float, regained: float) -> None:
    """Exactly: over every table of 80 items, by its probability under a true drop."""
    items, missed = 80, 0.0
    p_dense, p_variant = drop + regained, regained
    for dense in range(items + 1):
        for variant in range(items + 1 - dense):
            rest = items - dense - variant
            probability = (
                math.comb(items, dense)
                * math.comb(items - dense, variant)
                * p_dense**dense
                * p_variant**variant
                * (1 - p_dense - p_variant) ** rest
            )
            if probability > 1e-9 and drop_bounds(dense, variant, items, 0.95)[1] < drop:
                missed += probability
    assert missed <= 0.09  # 5% asymptotically; small counts are coarse


def test_bounds_of_a_published_table() -> None:
    """Airway hyper-responsiveness of 21 children, in Fagerland, Lydersen and Laake (2014, Statistics in
    Medicine 33, p. 2850): Tango's interval is -0.517 to -0.026."""
    assert drop_bounds(1, 7, 21, 0.975) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_without_differing_answers_the_fewest_items_are_just_enough() -> None:
    for tolerance in (0.01, 0.03, 0.1):
        needed = items_needed(tolerance, 0.95)
        assert drop_bounds(0, 0, needed, 0.95)[1] <= tolerance
        assert drop_bounds(0, 0, needed - 1, 0.95)[1] > tolerance
    assert items_needed(0.03, 0.95) == 99


@pytest.mark.parametrize("items", [99, 120, 147, 199, 250, 400])
def test_a_loss_at_the_tolerance_is_called_safe_once_in_twenty_at_most(items: int) -> None:
    """Where all that differs is lost: there Tango's bound alone would err in 6 to 7% of the studies."""
    drop = 0.03
    error = sum(
        math.comb(items, lost) * drop**lost * (1 - drop) ** (items - lost)
        for lost in range(items + 1)
        if drop_bounds(lost, 0, items, 0.95)[1] <= drop
    )
    assert 0 < error <= 0.05


def test_many_items_of_which_most_are_lost() -> None:
    low, high = drop_bounds(6_000, 0, 7_000, 0.95)
    assert 0.84 < low < 6 / 7 < high < 0.87
    assert drop_bounds(0, 7, 7, 0.95)[0] == pytest.approx(-1)


@pytest.mark.parametrize("counts", [(1, 0, 0), (-1, 0, 5), (3, 3, 5)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="discordant"):
        drop_bounds(*counts, 0.95)


def test_the_threshold_is_the_last_before_the_first_that_fails() -> None:
    found = threshold(table(s10=0.01, s20=0.02, s30=0.04, s40=0.01), 180, 0.03, 0.95)
    assert (found.sparsity, found.stopped_by) == (0.2, 0.3)


def test_the_order_of_the_table_does_not_matter() -> None:
    forward = table(s10=0.01, s20=0.05, s30=0.01)
    assert threshold(dict(reversed(forward.items())), 180, 0.03, 0.95) == threshold(forward, 180, 0.03, 0.95)


def test_a_bound_at_the_tolerance_is_safe() -> None:
    assert threshold(table(s10=0.03), 180, 0.03, 0.95).sparsity == 0.1


def test_all_safe_and_none_safe() -> None:
    assert threshold(table(s10=0.01, s20=0.01), 180, 0.03, 0.95).stopped_by is None
    none = threshold(table(s10=0.04, s20=0.01), 180, 0.03, 0.95)
    assert (none.sparsity, none.stopped_by) == (0.0, 0.1)


def test_too_few_items_show_nothing() -> None:
    few = compare([True] * 87, [True] * 87, 0.95)
    enough = compare([True] * 99, [True] * 99, 0.95)
    assert not threshold({0.1: few}, 87, 0.03, 0.95).could_be_shown
    assert threshold({0.1: few}, 87, 0.03, 0.95).sparsity == 0
    assert threshold({0.1: enough}, 99, 0.03, 0.95).could_be_shown
    assert threshold({0.1: enough}, 99, 0.03, 0.95).sparsity == 0.1


def test_what_the_dense_model_cannot_solve_leaves_nothing_to_lose() -> None:
    """All comparisons within the tolerance; Wilson's lower bound passes 6% at 19 of 200 solved items."""
    equal = table(s10=0.01, s20=0.01)
    for solved in (0, 6, 18, 19, 200):
        found = threshold(equal, solved, 0.03, 0.95)
        assert found.has_something_to_lose == found.could_be_shown == (solved >= 19)
        assert (found.sparsity, found.stopped_by) == ((0.2, None) if solved >= 19 else (0.0, 0.1))
