from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, silu
from transformers import AutoModelForCausalLM

from pruning.calibration import gradients
from pruning.calibration.activations import (
    MomentSums,
    TaylorSums,
    add_moments,
    mlps,
    weight_norms,
)
from pruning.calibration.batches import TokenSequence, pad_batch
from pruning.calibration.gradients import add_moments_and_gradients
from tests.tiny import FAMILIES, tiny_checkpoint

LAYERS, NEURONS = 3, 192
SEQUENCES = [
    TokenSequence((5, 80, 81, 40), (7, 9, 12, 200)),
    TokenSequence((30, 31), (60, 61, 62, 63, 64, 65)),
    TokenSequence((100, 3, 77, 12, 15, 19, 21), (2,)),
]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint(tmp_path, request.param))
    return model.eval().requires_grad_(False)


def activations_of(model: Any, sequence: TokenSequence, *, gradients: bool = False) -> list[Tensor]:
    """h of every layer, computed from the MLPs' inputs by the formula, one sequence at a time; or h ∂L/∂h."""
    inputs: list[Tensor] = []
    hooks = [mlp.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for mlp in mlps(model)]
    deltas = [torch.zeros(1, len(sequence.fed), NEURONS, requires_grad=True) for _ in range(LAYERS)]
    hooks += [
        mlp.down_proj.register_forward_pre_hook(lambda _, args, delta=delta: args[0] + delta)
        for mlp, delta in zip(mlps(model), deltas, strict=True)
    ]
    logits = model(torch.tensor([sequence.fed])).logits[0]
    for hook in hooks:
        hook.remove()
    h = [
        (silu(linear(x, mlp.gate_proj.weight)) * linear(x, mlp.up_proj.weight))[0].detach()
        for mlp, x in zip(mlps(model), inputs, strict=True)
    ]
    if not gradients:
        return h
    loss = cross_entropy(logits[len(sequence.prompt) - 1 :], torch.tensor(sequence.answer), reduction="sum")
    return [value * gradient[0] for value, gradient in zip(h, torch.autograd.grad(loss, deltas), strict=True)]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual, expected.double(), rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("with_gradients", [False, True])
def test_moments_are_those_of_each_sequence_alone(model: Any, with_gradients: bool) -> None:
    sums = MomentSums(LAYERS, NEURONS)
    for group in (SEQUENCES[:2], SEQUENCES[2:]):  # padded batches, and more than one of them
        batch = pad_batch(group, model.device)
        if with_gradients:
            add_moments_and_gradients(model, batch, sums, TaylorSums(LAYERS, NEURONS), layers_at_once=LAYERS)
        else:
            add_moments(model, batch, sums)

    direct = [activations_of(model, sequence) for sequence in SEQUENCES]
    for layer in range(LAYERS):
        h = [layers[layer] for layers in direct]
        prompts = [x[: len(s.prompt)] for x, s in zip(h, SEQUENCES, strict=True)]
        answers = [x[len(s.prompt) :] for x, s in zip(h, SEQUENCES, strict=True)]
        for moments, parts in ((sums.prompt, prompts), (sums.answer, answers)):
            joined = torch.cat(parts)
            assert moments.tokens == len(joined)
            assert_close(moments.sum[layer], joined.sum(0))
            assert_close(moments.abs_sum[layer], joined.abs().sum(0))
            assert_close(moments.sq_sum[layer], joined.square().sum(0))
        fed = [x for x in answers if len(x)]  # the last answer is one token, which is never fed
        for per_sequence, parts in ((sums.per_prompt, prompts), (sums.per_answer, fed)):
            means = torch.stack([x.abs().mean(0) for x in parts])
            assert per_sequence.sequences == len(parts)
            assert_close(per_sequence.sum[layer], means.sum(0))
            assert_close(per_sequence.sq_sum[layer], means.square().sum(0))


@pytest.mark.parametrize("layers_at_once", [1, 2, LAYERS])
def test_gradients_are_autograds_whatever_the_batch(
    model: Any, monkeypatch: pytest.MonkeyPatch, layers_at_once: int
) -> None:
    monkeypatch.setattr(gradients, "LOGIT_ROWS", 4)  # 11 positions: whole and part chunks
    taylor = TaylorSums(LAYERS, NEURONS)
    batch = pad_batch(SEQUENCES, model.device)
    add_moments_and_gradients(
        model, batch, MomentSums(LAYERS, NEURONS), taylor, layers_at_once=layers_at_once
    )

    direct = [activations_of(model, sequence, gradients=True) for sequence in SEQUENCES]
    for layer in range(LAYERS):
        changes = torch.cat([layers[layer] for layers in direct])
        assert float(changes.abs().max()) > 0
        assert_close(taylor.abs_sum[layer], changes.abs().sum(0))
        assert_close(taylor.sq_sum[layer], changes.square().sum(0))


def test_fewer_layers_at_once_hold_less_and_find_the_same(model: Any) -> None:
    batch = pad_batch(SEQUENCES, model.device)
    found, peaks = [], []
    for layers_at_once in (1, 2, LAYERS):
        sums, taylor, held = MomentSums(LAYERS, NEURONS), TaylorSums(LAYERS, NEURONS), Held()
        with torch.autograd.graph.saved_tensors_hooks(held.pack, held.unpack):
            add_moments_and_gradients(model, batch, sums, taylor, layers_at_once=layers_at_once)
        found.append([taylor.abs_sum, taylor.sq_sum, sums.answer.sq_sum, sums.per_prompt.sum])
        peaks.append(held.peak)

    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))
    assert peaks[0] < peaks[1] < peaks[2]


class Held:
    """Counts what autograd keeps, and how much at once. One that is kept twice counts twice."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def pack(self, tensor: Tensor) -> "Kept":
        self.now += tensor.nbytes
        self.peak = max(self.peak, self.now)
        return Kept(self, tensor)

    def unpack(self, kept: "Kept") -> Tensor:
        return kept.tensor


class Kept:
    def __init__(self, held: Held, tensor: Tensor) -> None:
        self.held, self.tensor = held, tensor

    def __del__(self) -> None:
        self.held.now -= self.tensor.nbytes


def test_measuring_leaves_nothing_behind(model: Any) -> None:
    batch = pad_batch(SEQUENCES, model.device)
    add_moments_and_gradients(
        model, batch, MomentSums(LAYERS, NEURONS), TaylorSums(LAYERS, NEURONS), layers_at_once=2
    )

    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(mlp.down_proj._forward_pre_hooks for mlp in mlps(model))


def test_weight_norms_are_those_of_rows_and_columns(model: Any) -> None:
    gate, up, down = weight_norms(model)

    mlp = mlps(model)[1]
    assert_close(gate[1], mlp.gate_proj.weight.square().sum(dim=1).sqrt())
    assert_close(up[1], mlp.up_proj.weight.square().sum(dim=1).sqrt())
    assert_close(down[1], mlp.down_proj.weight.square().sum(dim=0).sqrt())
    assert gate.shape == up.shape == down.shape == (LAYERS, NEURONS)
