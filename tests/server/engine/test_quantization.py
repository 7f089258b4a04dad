"""Matrices in 8 bits: the rounding itself, and engines that compute with them."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from pruning.delta import PROJECTIONS, Delta
from server.engine import kernels, weights
from server.engine.quantization import QuantizedMatrix, linear, quantize, rows_of
from server.engine.variant import Variant
from tests.deltas import random_delta
from tests.server.engine.support import Loaded, generate, logit_gap, on_every_device, prompt
from tests.server.engine.test_delta import corrected
from tests.server.engine.test_kernels import compiled
from tests.server.engine.test_laws import MIDDLE, NARROW, TIE

INTEGER_TIE = 50 * TIE


def test_a_row_is_integers_and_a_scale() -> None:
    quantized = quantize(torch.tensor([[0.0, 2.54, -1.0, 0.011], [0.0, 0.0, 0.0, 0.0]]))
    assert quantized.values.tolist() == [[0, 127, -50, 1], [0, 0, 0, 0]]
    assert quantized.values.dtype == torch.int8
    torch.testing.assert_close(quantized.scales, torch.tensor([0.02, 0.0]))


def test_a_row_of_next_to_nothing_is_zeros() -> None:
    assert quantize(torch.tensor([[1e-38, -2e-39], [1e-45, 0.0]])).values.tolist() == [[0, 0], [0, 0]]


def test_known_peaks_set_the_scale() -> None:
    quantized = quantize(torch.tensor([[1.0, -0.5]]), peaks=torch.tensor([12.7]))
    assert quantized.values.tolist() == [[10, -5]]


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_no_number_stays_none(number: float) -> None:
    """An overflow must show in the answer, and not as a zero."""
    rows = torch.tensor([[1.0, number, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]])
    y = linear(rows, quantize(torch.ones(3, 4)))
    assert not y[0].isfinite().any()
    assert y[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_product_is_that_of_what_was_rounded(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 900, generator=generator).to(dtype)
    weight = torch.randn(7, 900, generator=generator)
    bias = torch.randn(7, generator=generator).to(dtype)
    rounded_x, rounded_weight = (
        (q.values.double() * q.scales.double()[:, None]) for q in (quantize(x), quantize(weight))
    )
    expected = F.linear(rounded_x, rounded_weight, bias.double())
    y = linear(x, quantize(weight), bias)
    assert y.dtype == dtype
    rounding = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), expected, rtol=rounding, atol=rounding * expected.std().item())
    # What rounding both to 8 bits moves a product by, of the size of a product.
    error = (expected - F.linear(x.double(), weight.double(), bias.double())).std()
    assert 0.001 < error / expected.std() < 0.02


def reference(loaded: Loaded, variant: Variant, delta: Delta | None = None) -> PreTrainedModel:
    """transformers' network, cut to the variant's widths, that multiplies as a quantized one does."""
    model = loaded.reference(variant)
    whole = dict(loaded.reference(loaded.dense).named_modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            rounded = quantize(module.weight.detach())
            module.forward = partial(_embed, weight=rounded)  # type: ignore[method-assign]
        if not isinstance(module, nn.Linear):
            continue
        # Scales of Wd are those of all neurons; the other maps have an output's weights whole in any cut.
        peaks = whole[name].weight.detach().abs().amax(1) if name.endswith("down_proj") else None
        weight = quantize(module.weight.detach(), peaks)
        low_rank = None
        if delta and ".layers." in name:
            low_rank = delta.layers[int(name.split(".")[2])].get(name.split(".")[-1])  # type: ignore[call-overload]
        added = torch.zeros_like(module.weight) if low_rank is None else low_rank.product().float()
        module.forward = partial(_forward, weight=weight, bias=module.bias, added=added)  # type: ignore[method-assign]
    return model


def _forward(
    x: torch.Tensor, *, weight: QuantizedMatrix, bias: torch.Tensor | None, added: torch.Tensor
) -> torch.Tensor:
    return linear(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1]) + F.linear(x, added)


def _embed(token_ids: torch.Tensor, *, weight: QuantizedMatrix) -> torch.Tensor:
    return rows_of(weight, token_ids.flatten()).unflatten(0, token_ids.shape)


def variants_of(loaded: Loaded) -> list[Variant]:
    return [loaded.dense, loaded.variant(MIDDLE), loaded.variant(NARROW)]


@on_every_device
@pytest.mark.parametrize("rows_per_slice", [1024, 50], ids=["read whole", "read in slices"])
def test_a_variant_is_the_quantized_slice(
    loaded: Loaded, rows_per_slice: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three widths in one batch, each against a network that holds only its neurons."""
    monkeypatch.setattr(weights, "_ROWS_PER_SLICE", rows_per_slice)
    variants = variants_of(loaded)
    asked = [(prompt(seed, 20 + 17 * seed), variants[seed % 3]) for seed in range(7)]
    outputs = generate(loaded.engine(quantization="int8"), asked)
    references = {variant: reference(loaded, variant) for variant in variants}
    for (token_ids, variant), output in zip(asked, outputs, strict=True):
        # A sum in another order may move an integer by one.
        assert logit_gap(references[variant], token_ids, output) <= INTEGER_TIE
    # The widths matter: the narrow network is another one.
    assert logit_gap(references[variants[2]], asked[0][0], outputs[0]) > 10 * INTEGER_TIE


@compiled
def test_the_compiled_kernels_compute_with_8_bits(loaded: Loaded) -> None:
    variants = variants_of(loaded)
    engine = loaded.engine(dtype="bfloat16", quantization="int8")
    assert engine.kernels == kernels.describe()
    asked = [(prompt(seed, 20 + 17 * seed), variants[seed % 3]) for seed in range(7)]
    references = {variant: reference(loaded, variant) for variant in variants}
    for (token_ids, variant), output in zip(asked, generate(engine, asked), strict=True):
        assert logit_gap(references[variant], token_ids, output) <= 0.15


@on_every_device
@pytest.mark.parametrize("limits", [{"dtype": "float32"}, {"dtype": "bfloat16"}], ids=str)
def test_a_delta_is_added_to_quantized_maps(load, limits: dict[str, object]) -> None:
    loaded = load("qwen2")
    engine = loaded.engine(quantization="int8", **limits)
    references = {variant: reference(loaded, variant) for variant in variants_of(loaded)}
    for widths, projections in ((NARROW, PROJECTIONS), (MIDDLE, ("q_proj", "up_proj", "down_proj"))):
        delta = random_delta(loaded.checkpoint, loaded.ranking, widths, projections=projections, seed=3)
        plain = loaded.variant(widths)
        references[corrected(loaded, engine, delta)] = reference(loaded, plain, delta)
    asked = [(prompt(seed, 30), variant) for seed, variant in enumerate([*references] * 2)]
    for (token_ids, variant), output in zip(asked, generate(engine, asked), strict=True):
        gap = logit_gap(references[variant], token_ids, output)
        assert gap <= 0.3, variant.name  # a delta as large as the weights themselves


@on_every_device
@pytest.mark.parametrize("limits", [{"dtype": "float32"}, {"dtype": "bfloat16"}], ids=str)
def test_neurons_that_nobody_serves_change_no_answer(loaded: Loaded, limits: dict[str, object]) -> None:
    asked = [(prompt(1, 30), loaded.variant(MIDDLE)), (prompt(2, 30), loaded.variant(NARROW))]
    whole, cut = (loaded.engine(widths, quantization="int8", **limits) for widths in (None, MIDDLE))
    assert generate(cut, asked) == generate(whole, asked)
    assert cut.weight_bytes < whole.weight_bytes


@on_every_device
def test_bytes_are_those_held(loaded: Loaded) -> None:
    plain = loaded.engine(kernels="torch")
    engine, cut = (loaded.engine(widths, kernels="torch", quantization="int8") for widths in (None, MIDDLE))
    assert engine.standalone_bytes(loaded.dense.widths) == engine.weight_bytes
    assert engine.standalone_bytes(MIDDLE) == cut.weight_bytes
    assert engine.embedding_bytes == 320 * (64 + 4)
    assert engine.parameters(MIDDLE) == plain.parameters(MIDDLE) == cut.parameters(MIDDLE)
    # Numbers of 1 byte for 4, and 4 of scale for each output: of qkv, output, gate, up, down, vocabulary.
    tables = 1 if loaded.checkpoint.config.tie_word_embeddings else 2
    outputs = 3 * (128 + 64 + 192 + 192 + 64) + tables * 320
    numbers = 3 * 64 * (128 + 64 + 192 + 192 + 192) + tables * 320 * 64
    assert plain.weight_bytes - engine.weight_bytes == 3 * numbers - 4 * outputs


def test_what_int8_is_in_is_said(load) -> None:
    loaded = load("qwen2")
    assert loaded.engine(dtype="bfloat16", quantization="int8").config.precision == "bfloat16 int8"
    assert loaded.engine(dtype="bfloat16").config.precision == "bfloat16"
