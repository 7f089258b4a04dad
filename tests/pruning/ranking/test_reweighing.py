"""Tokens count by divergence: the weights, what they do to the measurement, and that ranking uses them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from pruning.calibration.activations import MomentSums, TaylorSums
from pruning.calibration.batches import TokenSequence, pad_batch
from pruning.calibration.calibration import Calibration, CalibrationData, load_network, start_calibration
from pruning.calibration.gradients import add_moments_and_gradients
from pruning.checkpoints.checkpoint import open_checkpoint
from pruning.ranking.divergence import AnswerDivergence, DenseReference
from pruning.ranking.masking import keeping
from pruning.ranking.reweighing import divergence_weights, reweighed
from pruning.ranking.scores import SCORES
from pruning.ranking.stepwise import Steps, StepsSoFar, rank_in_steps, reordered
from tests.pruning.answered import answers_to
from tests.tiny import tiny_checkpoint

LAYERS, NEURONS = 3, 192
DATA = CalibrationData(("one and one", "2 + 3 * 4 ="), ("once upon a time",), seed=7, max_new_tokens=8)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    path = tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")
    checkpoint = open_checkpoint(str(path), path)
    answers = answers_to(DATA, checkpoint)
    return start_calibration(checkpoint, "sums", DATA, answers, device="cpu", dtype=torch.float32)


def diverging(*kl: float) -> AnswerDivergence:
    return AnswerDivergence(kl, agreements=0, end_probability=None)


def test_weights_by_hand() -> None:
    # The mean is (0 + 3 + 1 + 0) / 4 = 1.
    assert divergence_weights([diverging(0, 3, 1), diverging(0)]) == [(0.5, 2.0, 1.0), (0.5,)]
    assert divergence_weights([diverging(0, 0), diverging(0)]) == [(1.0, 1.0), (1.0,)]


def test_weights_lie_where_their_tokens_are_predicted() -> None:
    sequences = (TokenSequence((1, 2, 3), (4, 5)), TokenSequence((6,), (7,)))
    batch = pad_batch(reweighed(sequences, [(0.5, 2.0), (3.0,)]), torch.device("cpu"))
    assert batch.weights.tolist() == [[1, 1, 0.5, 2], [3, 1, 1, 1]]
    assert pad_batch(sequences, torch.device("cpu")).weights.unique().tolist() == [1]


def test_weighed_moments_are_weighed_sums() -> None:
    sequence = TokenSequence((1, 2), (3, 4, 5), weights=(0.5, 2.0, 4.0))
    sums = MomentSums(1, 1)
    batch = pad_batch([sequence], torch.device("cpu"))
    sums.count(batch)
    sums.add(0, torch.tensor([[[1.0], [-3.0], [-2.0], [5.0]]]), batch)  # fed: 1, 2, 3, 4

    assert float(sums.prompt.sum) == 1 - 0.5 * 3
    assert float(sums.answer.sum) == 2 * -2 + 4 * 5
    assert float(sums.answer.abs_sum) == 2 * 2 + 4 * 5
    assert float(sums.answer.sq_sum) == 2 * 4 + 4 * 25
    assert sums.answer.tokens == 2 + 4
    assert float(sums.per_answer.sum) == (2 * 2 + 4 * 5) / (2 + 4)
    assert float(sums.per_prompt.sum) == pytest.approx((1 + 0.5 * 3) / 1.5)


def test_the_loss_weighs_by_the_root(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint(tmp_path / "tiny")), tmp_path)
    model: Any = load_network(checkpoint, torch.device("cpu"), torch.float32)
    sequence = TokenSequence((5, 80, 81, 40), (7, 9, 12), weights=(0.25, 4.0, 1.0))
    taylor = TaylorSums(LAYERS, NEURONS)
    batch = pad_batch([sequence], torch.device("cpu"))
    add_moments_and_gradients(model, batch, MomentSums(LAYERS, NEURONS), taylor, layers_at_once=2)

    deltas = [torch.zeros(1, 6, NEURONS, requires_grad=True) for _ in range(LAYERS)]
    seen: list[torch.Tensor] = []

    def hook_of(delta: torch.Tensor):
        def hook(_: object, inputs: tuple[torch.Tensor]) -> torch.Tensor:
            seen.append(inputs[0].detach())
            return inputs[0] + delta

        return hook

    for layer, delta in zip(model.model.layers, deltas, strict=True):
        layer.mlp.down_proj.register_forward_pre_hook(hook_of(delta))
    logits = model(torch.tensor([sequence.fed])).logits[0, 3:]
    losses = cross_entropy(logits, torch.tensor(sequence.answer), reduction="none")
    gradients = torch.autograd.grad(0.5 * losses[0] + 2 * losses[1] + losses[2], deltas)
    for layer in range(LAYERS):
        expected = (seen[layer] * gradients[layer])[0].square().sum(dim=0)
        assert float(expected.max()) > 0
        torch.testing.assert_close(taylor.sq_sum[layer].float(), expected, rtol=1e-3, atol=1e-9)


def test_ranking_in_steps_weighs_by_what_each_step_has_lost(calibration: Calibration) -> None:
    score, seen, evenly = SCORES["taylor2"], list[StepsSoFar](), list[StepsSoFar]()
    steps = Steps(0.25, 0.5, "global", reweigh=True)
    saved = rank_in_steps(calibration, score, steps, start=None, on_step=seen.append, progress=False)
    rank_in_steps(
        calibration,
        score,
        Steps(0.25, 0.5, "global"),
        start=None,
        on_step=evenly.append,
        progress=False,
    )
    assert torch.equal(seen[0].position, evenly[0].position), "the whole model diverges nowhere"
    assert not torch.equal(seen[1].position, evenly[1].position)
    assert saved.ranking.score == "taylor2, reweighed, in steps of 0.25"

    kept = seen[0].position < steps.num_kept(0.25, LAYERS, NEURONS)
    dense = DenseReference(calibration.model, calibration.targets, (), progress=False)
    totals = MomentSums(LAYERS, NEURONS), TaylorSums(LAYERS, NEURONS)
    with keeping(calibration.model, kept):
        weights = divergence_weights(dense.divergence(progress=False))
        batch = pad_batch(reweighed(calibration.targets, weights), torch.device("cpu"))
        add_moments_and_gradients(calibration.model, batch, *totals, layers_at_once=LAYERS)
    assert max(map(max, weights)) > 1 > min(map(min, weights)) >= 0.5
    expected = reordered(seen[0].position, int(kept.sum()), totals[1].sq_sum, "global")
    assert torch.equal(seen[1].position, expected)
