"""Modelled FLOPs are those that the engine spends, modelled bytes those of the weights that it reads."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from torch.utils.flop_counter import FlopCounterMode

from pruning.checkpoints.checkpoint import Checkpoint, open_checkpoint
from pruning.delta import Delta
from server.engine.config import EngineConfig
from server.engine.engine import Engine, load_engine
from server.engine.request import Request, SamplingParams
from server.engine.variant import Variant
from server.loading.deltas import NamedDelta
from server.monitoring.efficiency import CostModel, TokenCost
from server.variants import VariantBuilder
from tests.deltas import random_delta
from tests.tiny import FAMILIES, tiny_checkpoint, tiny_ranking

DENSE, UNEVEN = (192, 192, 192), (40, 160, 8)
CONFIG = EngineConfig(
    device="cpu",
    dtype="float32",
    block_size=8,
    kv_cache_bytes=1 << 20,
    max_model_len=64,
    max_num_seqs=4,
    max_num_batched_tokens=16,
    max_waiting=4,
    enable_prefix_caching=True,
)


def checkpoint(directory: Path, family: str = "qwen2", **overrides: object) -> Checkpoint:
    return open_checkpoint(str(tiny_checkpoint(directory / "tiny", family, **overrides)), directory)


def build(engine: Engine, model: Checkpoint, widths: tuple[int, ...], delta: Delta | None = None) -> Variant:
    builder = VariantBuilder(
        "tiny",
        lambda sparsity: widths,
        lambda widths: 0.0,
        engine,
        fingerprint=model.fingerprint,
        ranking=tiny_ranking().digest,
    )
    return builder.build(0.3, None if delta is None else NamedDelta("d", delta))


def flops_of_a_step(engine: Engine, variants: Sequence[Variant]) -> int:
    """Of one token each, attention's own products left out."""
    for variant in variants:
        engine.add(Request(variant.name, [5], variant, SamplingParams(max_tokens=2, temperature=0)))
    with FlopCounterMode(display=False) as counter:
        engine.step()
    by_kernel = counter.get_flop_counts()["Global"]
    return sum(
        count for kernel, count in by_kernel.items() if "mm" in str(kernel) and "bmm" not in str(kernel)
    )


@pytest.mark.parametrize("widths", [DENSE, UNEVEN])
@pytest.mark.parametrize("family", FAMILIES)
def test_modelled_flops_are_those_that_a_step_of_one_token_spends(
    family: str, widths: tuple[int, ...], tmp_path: Path
) -> None:
    model = checkpoint(tmp_path, family)
    engine = load_engine(model, tiny_ranking(), DENSE, CONFIG)
    variant = build(engine, model, widths)
    assert CostModel(model, engine).of(variant).flops == flops_of_a_step(engine, [variant])


def test_a_delta_costs_its_own_numbers(tmp_path: Path) -> None:
    model = checkpoint(tmp_path)
    engine = load_engine(model, tiny_ranking(), DENSE, CONFIG)
    # Of the down projection alone: queries, keys and values share one product that multiplies zeros as well.
    delta = random_delta(model, tiny_ranking(), UNEVEN, projections=("down_proj",))
    plain, corrected = build(engine, model, UNEVEN), build(engine, model, UNEVEN, delta)
    costs = CostModel(model, engine)
    assert costs.of(corrected).flops == flops_of_a_step(engine, [corrected])
    assert costs.of(corrected).flops - costs.of(plain).flops == 2 * delta.parameters
    assert costs.of(corrected).weight_bytes - costs.of(plain).weight_bytes == 4 * delta.parameters


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_are_those_of_all_weights_but_an_embedding_that_is_not_the_head(
    tied: bool, tmp_path: Path
) -> None:
    model = checkpoint(tmp_path, tie_word_embeddings=tied)
    engine = load_engine(model, tiny_ranking(), DENSE, CONFIG)
    with model.open_tensors() as tensors:
        held = sum(tensors.get(name).nbytes for name in tensors.names)
        embedding = tensors.get("model.embed_tokens.weight").nbytes
    dense = CostModel(model, engine).of(build(engine, model, DENSE))
    assert dense.weight_bytes == held - (0 if tied else embedding)
    assert dense.flops == CostModel(model, engine).dense.flops


def test_dense_is_the_whole_model_also_where_it_is_not_served(tmp_path: Path) -> None:
    model = checkpoint(tmp_path)
    whole, narrow = (load_engine(model, tiny_ranking(), widths, CONFIG) for widths in (DENSE, UNEVEN))
    pruned = build(narrow, model, UNEVEN)
    assert CostModel(model, narrow).dense == CostModel(model, whole).of(build(whole, model, DENSE))
    saved = 3 * 64 * (sum(DENSE) - sum(UNEVEN))
    dense = CostModel(model, narrow).dense
    assert CostModel(model, narrow).of(pruned) == TokenCost(
        dense.flops - 2 * saved, dense.weight_bytes - 4 * saved
    )
