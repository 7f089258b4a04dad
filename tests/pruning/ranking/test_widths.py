from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.errors import SecateurError, SparsityError
from pruning.ranking.ranking import Ranking, rank
from pruning.ranking.widths import Allocation, exact_sparsity, granularity, widths_at

ALLOCATIONS: tuple[Allocation, ...] = ("global", "uniform")

sizes = st.sampled_from([4, 8, 12, 64, 100, 192, 250])
sparsities = st.floats(0, 1, exclude_max=True)
allocations = st.sampled_from(ALLOCATIONS)


def random_ranking(layers: int, neurons: int, seed: int, spread: float = 1.0) -> Ranking:
    """`spread` makes layers differ: at 0 the global order takes equally from all."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(layers, neurons, generator=generator) + spread * torch.arange(layers).unsqueeze(1)
    return rank(scores, score="test", profile_digest="p")


@given(sizes, st.integers(1, 5), st.integers(0, 99), st.lists(sparsities, min_size=2), allocations)
def test_a_higher_sparsity_is_nowhere_wider(
    neurons: int, layers: int, seed: int, asked: list[float], allocation: Allocation
) -> None:
    ranking = random_ranking(layers, neurons, seed, spread=0.2)
    by_sparsity = [widths_at(ranking, sparsity, allocation) for sparsity in sorted(asked)]

    for wide, narrow in pairwise(by_sparsity):
        assert all(kept >= fewer for kept, fewer in zip(wide, narrow, strict=True))


@given(sizes, st.integers(1, 5), st.integers(0, 99), sparsities, allocations)
def test_widths_are_multiples_or_full_and_never_nothing(
    neurons: int, layers: int, seed: int, sparsity: float, allocation: Allocation
) -> None:
    step = granularity(neurons)
    widths = widths_at(random_ranking(layers, neurons, seed), sparsity, allocation)

    assert len(widths) == layers
    for width in widths:
        assert width == neurons or width % step == 0
        assert min(step, neurons) <= width <= neurons


@given(sizes, st.integers(0, 99), sparsities)
def test_each_layer_is_rounded_to_the_nearest(neurons: int, seed: int, sparsity: float) -> None:
    step, layers = granularity(neurons), 3
    ranking = random_ranking(layers, neurons, seed, spread=0.3)
    kept = round(layers * neurons * (1 - sparsity))
    counts = (ranking.global_position < kept).sum(dim=1).tolist()

    for width, count in zip(widths_at(ranking, sparsity, "global"), counts, strict=True):
        assert abs(width - count) <= step / 2 or (count < step and width == min(step, neurons))


@given(sizes, st.integers(1, 5), st.integers(0, 99), sparsities, allocations)
def test_the_exact_sparsity_is_within_one_step_of_what_was_asked(
    neurons: int, layers: int, seed: int, sparsity: float, allocation: Allocation
) -> None:
    widths = widths_at(random_ranking(layers, neurons, seed), sparsity, allocation)

    assert abs(exact_sparsity(widths, neurons) - sparsity) <= granularity(neurons) / neurons + 1 / neurons


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("neurons", [4, 100, 192, 1024, 4864])
def test_sparsity_zero_keeps_every_neuron(neurons: int, allocation: Allocation) -> None:
    widths = widths_at(random_ranking(3, neurons, 0), 0.0, allocation)

    assert widths == (neurons,) * 3
    assert exact_sparsity(widths, neurons) == 0.0


def test_global_takes_from_the_layers_that_matter_least() -> None:
    ranking = random_ranking(
        4, 192, seed=1, spread=2.0
    )  # every neuron of a layer beats those of the one before

    assert widths_at(ranking, 0.25, "global") == (8, 192, 192, 192)
    assert widths_at(ranking, 0.25, "uniform") == (144,) * 4
    assert exact_sparsity((8, 192, 192, 192), 192) == pytest.approx(184 / 768)


@pytest.mark.parametrize(
    ("neurons", "step"), [(64, 8), (192, 8), (1024, 32), (1536, 32), (2048, 64), (4864, 64), (14336, 64)]
)
def test_granularity(neurons: int, step: int) -> None:
    assert granularity(neurons) == step


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_what_is_no_sparsity_is_refused(sparsity: float) -> None:
    with pytest.raises(SparsityError, match="less than 1") as caught:
        widths_at(random_ranking(1, 8, 0), sparsity, "uniform")
    assert isinstance(caught.value, SecateurError)
    assert isinstance(caught.value, ValueError)
