import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pruning.errors import ProfileError
from pruning.ranking.ranking import Order, Ranking, rank


def ranked(scores: Tensor, order: Order = "forward") -> Ranking:
    return rank(scores, score="test", profile_digest="p", order=order)


@st.composite
def score_tensors(draw: st.DrawFn) -> Tensor:
    layers, neurons = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    values = draw(st.lists(st.integers(-3, 3), min_size=layers * neurons, max_size=layers * neurons))
    return torch.tensor(values, dtype=torch.float64).view(layers, neurons)  # few values: many ties


def test_a_small_case_by_hand() -> None:
    ranking = ranked(torch.tensor([[1.0, 5.0, 3.0], [4.0, 4.0, 0.0]]))

    assert ranking.permutation.tolist() == [[1, 2, 0], [0, 1, 2]]
    assert ranking.global_position.tolist() == [[0, 3, 4], [1, 2, 5]]


@given(score_tensors())
def test_layers_agree_with_the_global_order(scores: Tensor) -> None:
    ranking = ranked(scores)
    layers, neurons = scores.shape

    assert ranking.permutation.sort(dim=1).values.tolist() == [list(range(neurons))] * layers
    assert ranking.global_position.flatten().sort().values.tolist() == list(range(layers * neurons))
    assert bool((ranking.global_position.diff(dim=1) > 0).all())
    assert bool((scores.gather(1, ranking.permutation).diff(dim=1) <= 0).all())


@given(score_tensors())
def test_the_global_order_is_by_score_then_layer_then_index(scores: Tensor) -> None:
    ranking = ranked(scores)
    found = [None] * scores.numel()
    for layer, row in enumerate(ranking.global_position.tolist()):
        for place, position in enumerate(row):
            index = int(ranking.permutation[layer, place])
            found[position] = (-float(scores[layer, index]), layer, index)

    assert found == sorted(found)


@given(score_tensors())
def test_reverse_is_the_mirror_image_of_forward(scores: Tensor) -> None:
    forward, reverse = ranked(scores), ranked(scores, "reverse")

    assert torch.equal(reverse.permutation, forward.permutation.flip(1))
    assert torch.equal(reverse.global_position, scores.numel() - 1 - forward.global_position.flip(1))
    assert forward.reversed().digest == reverse.digest
    assert reverse.reversed().digest == forward.digest


@given(score_tensors(), st.integers(0, 99))
def test_protected_neurons_come_first_and_keep_their_order(scores: Tensor, seed: int) -> None:
    protected = torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    ranking = rank(scores, score="test", profile_digest="p", protected=protected)
    raised = scores + 100 * protected

    assert torch.equal(ranking.permutation, ranked(raised).permutation)
    assert torch.equal(ranking.global_position, ranked(raised).global_position)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_is_refused_by_layer(value: float) -> None:
    scores = torch.zeros(3, 4)
    scores[1, 2] = value

    with pytest.raises(ProfileError, match="layer 1"):
        ranked(scores)


def test_the_digest_changes_with_everything_it_covers() -> None:
    base = ranked(torch.arange(6.0).view(2, 3))
    others = [
        dataclasses.replace(base, score="other"),
        dataclasses.replace(base, order="reverse"),
        dataclasses.replace(base, profile_digest="q"),
        dataclasses.replace(base, permutation=base.permutation.flip(1)),
        dataclasses.replace(base, global_position=base.global_position + 1),
    ]

    assert ranked(torch.arange(6.0).view(2, 3)).digest == base.digest
    assert len({base.digest, *(other.digest for other in others)}) == 6
