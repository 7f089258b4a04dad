"""A variant with a delta is the checkpoint into which it was merged, whatever shares its batch."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from pruning.delta import PROJECTIONS, Delta, LowRank, Projection
from pruning.slicing import merge_delta
from server.engine import kernels
from server.engine.delta import TorchDelta, stacked
from server.engine.engine import Engine
from server.engine.kernels.delta import pack_delta
from server.engine.kernels.library import BatchStruct
from server.engine.quantization import Weight, of_inputs, of_outputs
from server.engine.request import Request
from server.engine.variant import Variant
from tests.deltas import random_delta
from tests.server.engine.support import GREEDY, Loaded, generate, logit_gap, on_every_device, prompt
from tests.server.engine.test_kernels import Case, assert_close, compiled, product, rows
from tests.server.engine.test_laws import MIDDLE, NARROW, TIE


def corrected(loaded: Loaded, engine: Engine, delta: Delta) -> Variant:
    plain = loaded.variant(delta.provenance.widths)
    return dataclasses.replace(plain, name=f"{plain.name}+{delta.digest}", delta=engine.load_delta(delta))


def merged(loaded: Loaded, delta: Delta) -> PreTrainedModel:
    return merge_delta(loaded.reference(loaded.variant(delta.provenance.widths)), delta)


def deltas(loaded: Loaded) -> list[Delta]:
    """Two of one width, one of another, one of the whole model; of all maps, and of some."""
    made = [
        (NARROW, PROJECTIONS),
        (NARROW, ("down_proj",)),
        (MIDDLE, ("q_proj", "v_proj", "up_proj")),
        (loaded.dense.widths, ("o_proj", "k_proj", "gate_proj", "down_proj")),
    ]
    return [
        random_delta(loaded.checkpoint, loaded.ranking, widths, projections=projections, seed=seed)
        for seed, (widths, projections) in enumerate(made)
    ]


def check(loaded: Loaded, engine: Engine, tie: float) -> None:
    """Plain variants and deltas of like and unlike widths in one batch; each as if it were alone."""
    plain = [loaded.variant(NARROW), loaded.variant(MIDDLE), loaded.dense]
    references = {variant: loaded.reference(variant) for variant in plain}
    for delta in deltas(loaded):
        references[corrected(loaded, engine, delta)] = merged(loaded, delta)
    variants = list(references) * 2
    # Each says its prompt twice over, so that where guesses are made there are some to make.
    asked = [(prompt(seed, 3 + 4 * seed) * 2, variant) for seed, variant in enumerate(variants)]
    for (token_ids, variant), output in zip(asked, generate(engine, asked), strict=True):
        assert logit_gap(references[variant], token_ids, output) <= tie, variant.name
    # The deltas matter: the plain network of the width is another one.
    [output] = generate(engine, [(asked[3][0], variants[3])])
    assert logit_gap(references[plain[0]], asked[3][0], output) > max(10 * TIE, tie)


@on_every_device
@pytest.mark.parametrize("guesses", [0, 48], ids=["", "with guesses"])
def test_a_delta_is_the_merged_checkpoint(loaded: Loaded, guesses: int) -> None:
    check(loaded, loaded.engine(prompt_lookup_tokens=guesses), TIE)


@compiled
def test_the_compiled_kernels_compute_deltas(loaded: Loaded) -> None:
    engine = loaded.engine(dtype="bfloat16")
    assert engine.kernels == kernels.describe()
    check(loaded, engine, 0.15)  # a delta as large as the weights themselves adds roundings of its own


@on_every_device
def test_a_block_computed_with_a_delta_is_read_with_that_delta_only(load) -> None:
    loaded = load("qwen2")
    engine = loaded.engine()
    variants = [loaded.variant(NARROW), *(corrected(loaded, engine, d) for d in deltas(loaded)[:2])]
    token_ids = prompt(3, 64)

    def cached_tokens(variant: Variant) -> int:
        request = Request("r", [*token_ids, 1], variant, GREEDY)
        engine.add(request)
        while engine.num_unfinished:
            engine.step()
        return request.num_cached_tokens

    assert [cached_tokens(variant) for variant in variants] == [0, 0, 0]
    assert [cached_tokens(variant) for variant in variants] == [64, 64, 64]
    assert len({variant.kv_key for variant in variants}) == 3
    again = corrected(loaded, engine, deltas(loaded)[0])
    assert cached_tokens(again) == 64, "the same delta, loaded once more"


@on_every_device
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_are_those_held(load, dtype: str) -> None:
    loaded = load("qwen2")
    engine = loaded.engine(dtype=dtype)
    [delta, *_] = deltas(loaded)
    served = engine.load_delta(delta)
    assert served.num_parameters == delta.parameters
    assert served.digest == delta.digest
    if isinstance(served, TorchDelta):
        # Queries, keys and values become one map, with zeros where B has no matrix.
        zeros = sum(layer["q_proj"].rank * 2 * (64 + 2 * 32) for layer in delta.layers)
        assert served.num_bytes == getattr(torch, dtype).itemsize * (delta.parameters + zeros)
    else:
        assert served.num_bytes == sum(tensor.nbytes for tensor in served.tensors) > 2 * delta.parameters


def test_stacked_products_stand_one_above_the_other() -> None:
    first = LowRank(torch.randn(2, 5), torch.randn(3, 2))
    last = LowRank(torch.randn(1, 5), torch.randn(4, 1))
    expected = torch.cat([first.product(), torch.zeros(2, 5), last.product()])
    torch.testing.assert_close(stacked([first, None, last], [3, 2, 4]).product(), expected)


@compiled
@pytest.mark.parametrize("quantized", [False, True], ids=["bfloat16", "int8"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "projections", [("down_proj",), ("gate_proj",), ("gate_proj", "up_proj", "down_proj")]
)
def test_compiled_mlp(load, projections: Sequence[Projection], threads: int, quantized: bool) -> None:
    """Groups of rows of every size, with and without a delta, beside each other and of several widths."""
    case = Case(64, neurons=192, quantized=quantized)
    loaded = load("qwen2")

    def made(width: int, rank: int) -> Delta:
        return random_delta(
            loaded.checkpoint, loaded.ranking, (width,), projections=projections, rank=rank, seed=rank
        )

    groups = [(192, 1, None), (192, 15, made(192, 40)), (100, 3, made(100, 1)), (100, 14, made(100, 70))]
    groups += [(100, 5, None), (40, 27, made(40, 33))]
    packed = [delta and pack_delta(case.library, delta, (64, 32, 32)) for _, _, delta in groups]
    widths = [width for width, count, _ in groups for _ in range(count)]
    x = rows(len(widths), 64)
    residual = x.clone()
    rank_pairs = max(delta.rank_pairs for delta in packed if delta)
    batch = BatchStruct.of(
        len(widths),
        1,
        rank_pairs=rank_pairs,
        residual=residual,
        widths=torch.tensor(widths, dtype=torch.int32),
        group_ends=torch.tensor([count for _, count, _ in groups]).cumsum(0).int(),
        group_deltas=torch.tensor([delta.address if delta else 0 for delta in packed]),
    )
    size = case.library.workspace_bytes(case.model, len(widths), 192, rank_pairs, threads)
    workspace = torch.full((size // 2,), torch.nan, dtype=torch.bfloat16)
    case.library.mlp_block(case.model, case.struct, batch, workspace.data_ptr(), threads)
    found = (residual - x).split([count for _, count, _ in groups])
    for (width, count, delta), part, inputs in zip(
        groups, found, x.split([c for _, c, _ in groups]), strict=True
    ):
        assert count == len(part)
        assert_close(part, reference_mlp(case, inputs, width, delta), case.tolerance)


def reference_mlp(case: Case, x: torch.Tensor, width: int, delta: Delta | None) -> torch.Tensor:
    maps = delta.layers[0] if delta else {}

    def corrected(x: torch.Tensor, weight: Weight, name: Projection) -> torch.Tensor:
        y = product(x, weight)
        return y + product(product(x, maps[name].a), maps[name].b) if name in maps else y

    x = case.normed(x)
    gate = corrected(x, of_outputs(case.gate, 0, width), "gate_proj")
    up = corrected(x, of_outputs(case.up, 0, width), "up_proj")
    return corrected(F.silu(gate) * up, of_inputs(case.down, 0, width), "down_proj")
