import math

import pytest
import torch

from pruning.calibration.profile import SequenceMoments, TokenMoments
from pruning.errors import ProfileError
from pruning.ranking.scores import DEFAULT_SCORE, SCORES, protected_neurons, random_score
from tests.pruning.calibration.tiny_profiles import SHAPE, matrix, tiny_profile, tiny_provenance

ZEROS = torch.zeros(SHAPE, dtype=torch.float64)


def test_taylor2_is_the_mean_over_prompt_and_answer_tokens() -> None:
    profile = tiny_profile(
        target_prompt=TokenMoments(6, ZEROS, ZEROS, ZEROS),
        target_answer=TokenMoments(2, ZEROS, ZEROS, ZEROS),
        taylor_sq_sum=matrix(8, 16, 24, 0, 4, 80),
    )

    assert SCORES["taylor2"].compute(profile).tolist() == [[1, 2, 3], [0, 0.5, 10]]


def test_wanda_is_the_column_norm_times_the_root_mean_square_on_answers() -> None:
    profile = tiny_profile(
        target_answer=TokenMoments(4, ZEROS, ZEROS, matrix(4, 16, 36, 0, 1, 100)),
        down_norm=matrix(1, 2, 3, 4, 5, 6),
    )

    assert SCORES["wanda"].compute(profile).tolist() == [[1, 4, 9], [0, 2.5, 30]]


def test_taylor1_is_the_mean_over_prompt_and_answer_tokens() -> None:
    profile = tiny_profile(
        target_prompt=TokenMoments(3, ZEROS, ZEROS, ZEROS),
        target_answer=TokenMoments(1, ZEROS, ZEROS, ZEROS),
        taylor_abs_sum=matrix(8, 16, 24, 0, 4, 80),
    )

    assert SCORES["taylor1"].compute(profile).tolist() == [[2, 4, 6], [0, 1, 20]]


PRODUCT = {  # √taylor2 is 1, 2, 3 and 0, 1, 5; wanda 4, 1, 2 and 1, 9, 1
    "target_prompt": TokenMoments(1, ZEROS, ZEROS, ZEROS),
    "target_answer": TokenMoments(1, ZEROS, ZEROS, matrix(16, 1, 4, 1, 81, 1)),
    "taylor_sq_sum": 2 * matrix(1, 4, 9, 0, 1, 25),
    "down_norm": matrix(1, 1, 1, 1, 1, 1),
}


def test_taylor2_wanda_is_the_product_of_the_root_and_the_other() -> None:
    assert SCORES["taylor2_wanda"].compute(tiny_profile(**PRODUCT)).tolist() == [[4, 2, 6], [0, 9, 5]]


def test_taylor2_mixed_has_the_values_of_one_score_in_the_order_of_the_other() -> None:
    assert SCORES["taylor2_mixed"].compute(tiny_profile(**PRODUCT)).tolist() == [[4, 1, 9], [0, 25, 1]]


def test_act_l2_is_the_norm_over_answers_of_their_means() -> None:
    # First neuron: the means of two answers are 3 and 4.
    per_answer = SequenceMoments(2, matrix(7, 1, 1, 0, 0, 0), matrix(25, 1, 1, 0, 4, 9))

    scores = SCORES["act_l2"].compute(tiny_profile(target_per_answer=per_answer))
    assert scores.tolist() == [[5, 1, 1], [0, 2, 3]]


def test_flap_is_the_variance_on_answers_times_the_squared_column_norm() -> None:
    # First neuron: h is 1, 1, 3 and 3; the second is 2 throughout; rounding takes the third's below zero.
    answer = TokenMoments(4, matrix(8, 8, 4, 0, 4, 0), ZEROS, matrix(20, 16, 4 - 1e-15, 0, 8, 4))
    scores = SCORES["flap"].compute(tiny_profile(target_answer=answer, down_norm=matrix(3, 3, 3, 3, 2, 1)))

    assert scores.tolist() == [[9, 0, 0], [0, 4, 1]]


def test_selectivity_is_the_difference_of_means_over_the_pooled_deviation() -> None:
    # First neuron: prompt-level means 1 and 3 on the target, 0, 0, 0 and 2 on distractors.
    target = SequenceMoments(2, matrix(4, 2, 0, 0, 0, 0), matrix(10, 2, 0, 0, 0, 0))
    distractor = SequenceMoments(4, matrix(2, 4, 0, 0, 0, 0), matrix(4, 4, 0, 0, 0, 0))
    scores = SCORES["selectivity"].compute(
        tiny_profile(target_per_prompt=target, distractor_per_prompt=distractor)
    )

    mean = 6 / 6
    deviation = math.sqrt(((1 - mean) ** 2 + (3 - mean) ** 2 + 3 * (0 - mean) ** 2 + (2 - mean) ** 2) / 6)
    assert scores[0, 0].item() == pytest.approx((4 / 2 - 2 / 4) / (deviation + 1e-6), rel=1e-12)
    assert scores[0, 1].item() == 0  # the same on both: not selective
    assert scores[1].tolist() == [0, 0, 0]  # silent everywhere: no division by zero


def test_magnitude_is_the_product_of_the_three_norms() -> None:
    profile = tiny_profile(
        gate_norm=matrix(1, 2, 3, 4, 5, 6),
        up_norm=matrix(1, 1, 1, 2, 2, 2),
        down_norm=matrix(1, 0, 2, 1, 0, 2),
    )

    assert SCORES["magnitude"].compute(profile).tolist() == [[1, 0, 6], [8, 0, 24]]


def test_random_depends_on_the_seed_alone() -> None:
    random = SCORES["random"].compute
    first = random(tiny_profile())

    assert torch.equal(first, random(tiny_profile(taylor_sq_sum=matrix(6, 5, 4, 3, 2, 1))))
    assert not torch.equal(first, random(tiny_profile(provenance=tiny_provenance(seed=1))))
    assert len(set(first.flatten().tolist())) == 6


def test_a_random_score_can_be_drawn_with_a_seed_of_its_own() -> None:
    profile = tiny_profile(provenance=tiny_provenance(seed=7))

    assert torch.equal(random_score(7).compute(profile), SCORES["random"].compute(profile))
    assert not torch.equal(random_score(42).compute(profile), random_score(33).compute(profile))
    assert random_score(42).name == "random-42"


def test_the_strongest_neurons_and_the_outer_layers_are_protected() -> None:
    ones = torch.ones(4, 4, dtype=torch.float64)
    strengths = torch.tensor([[1.0, 2, 3, 4], [4, 3, 2, 1], [1, 4, 2, 3], [0, 0, 0, 1]]).double()
    profile = tiny_profile(target_per_answer=SequenceMoments(2, ones, strengths), down_norm=ones)

    assert protected_neurons(profile, 0, 0) is None
    found = protected_neurons(profile, 0.5, 0)
    assert found is not None
    assert found.nonzero().tolist() == [[0, 2], [0, 3], [1, 0], [1, 1], [2, 1], [2, 3], [3, 0], [3, 3]]
    layers = protected_neurons(profile, 0, 1)
    assert layers is not None
    assert layers.all(dim=1).tolist() == [True, False, False, True]
    assert not layers[1:3].any()


@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_finite_float64_per_layer_and_neuron(name: str) -> None:
    scores = SCORES[name].compute(tiny_profile())

    assert scores.shape == SHAPE
    assert scores.dtype == torch.float64
    assert bool(torch.isfinite(scores).all())
    assert SCORES[name].name == name


def test_only_changes_of_the_loss_are_compared_across_layers() -> None:
    comparable = {name for name, score in SCORES.items() if score.comparable_across_layers}
    assert comparable == {"taylor1", "taylor2", "taylor2_mixed"}
    assert SCORES[DEFAULT_SCORE].default_allocation == "global"
    assert SCORES["wanda"].default_allocation == "uniform"


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("wanda", {"target_answer": TokenMoments(0, ZEROS, ZEROS, ZEROS)}),
        ("flap", {"target_answer": TokenMoments(0, ZEROS, ZEROS, ZEROS)}),
        ("act_l2", {"target_per_answer": SequenceMoments(0, ZEROS, ZEROS)}),
        ("act_l2", {"target_per_answer": None}),
        ("taylor1", {"taylor_abs_sum": None}),
        ("selectivity", {"distractor_per_prompt": SequenceMoments(0, ZEROS, ZEROS)}),
        ("selectivity", {"target_per_prompt": SequenceMoments(0, ZEROS, ZEROS)}),
    ],
)
def test_a_score_without_its_data_is_refused(name: str, missing: dict[str, object]) -> None:
    with pytest.raises(ProfileError, match="'sums' counts no"):
        SCORES[name].compute(tiny_profile(**missing))
