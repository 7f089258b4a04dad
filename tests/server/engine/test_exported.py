"""What other engines load answers as the variant that is served: on every family, with and without zeros."""

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruning.checkpoints.checkpoint import open_checkpoint
from pruning.errors import ForeignDeltaError
from pruning.export.export import export_checkpoint
from pruning.slicing import merge_delta
from tests.deltas import random_delta
from tests.server.engine.support import Loaded, generate, logit_gap, prompt
from tests.server.engine.test_laws import TIE
from tests.tiny import tiny_checkpoint, tiny_ranking


@pytest.mark.parametrize("widths", [(96, 96, 96), (160, 96, 32)])
def test_an_export_answers_as_the_served_variant(
    loaded: Loaded, widths: tuple[int, ...], tmp_path: Path
) -> None:
    variant = loaded.variant(widths)
    asked = [(prompt(seed, 20 + 17 * seed), variant) for seed in range(4)]
    outputs = generate(loaded.engine(), asked)
    export_checkpoint(
        loaded.checkpoint, loaded.ranking, widths, tmp_path / "out", dtype=None, card="", progress=False
    )
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    for (token_ids, _), output in zip(asked, outputs, strict=True):
        assert logit_gap(exported, token_ids, output) <= TIE
    # The widths matter: the whole model gives other answers.
    dense = loaded.reference(loaded.dense)
    assert max(logit_gap(dense, asked[i][0], outputs[i]) for i in range(4)) > 10 * TIE


@pytest.mark.parametrize("widths", [(96, 96, 96), (160, 96, 32)])
def test_an_export_with_a_delta_answers_as_the_corrected_variant(
    loaded: Loaded, widths: tuple[int, ...], tmp_path: Path
) -> None:
    """Merged is served, up to rounding, for every linear map."""
    engine = loaded.engine()
    delta = random_delta(loaded.checkpoint, loaded.ranking, widths)
    variant = dataclasses.replace(loaded.variant(widths), delta=engine.load_delta(delta))
    asked = [(prompt(seed, 20 + 17 * seed), variant) for seed in range(4)]
    export_checkpoint(
        loaded.checkpoint,
        loaded.ranking,
        widths,
        tmp_path / "out",
        dtype=None,
        card="",
        progress=False,
        delta=delta,
    )
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    for (token_ids, _), output in zip(asked, generate(engine, asked), strict=True):
        assert logit_gap(exported, token_ids, output) <= TIE
    sliced = merge_delta(loaded.reference(loaded.variant(widths)), delta)
    for layer, (kept, found) in enumerate(zip(sliced.model.layers, exported.model.layers, strict=True)):
        assert torch.equal(kept.mlp.down_proj.weight, found.mlp.down_proj.weight[:, : widths[layer]])
        assert torch.equal(kept.self_attn.k_proj.weight, found.self_attn.k_proj.weight)


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [(torch.bfloat16, None), (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)],
)
def test_a_delta_is_added_in_float32_and_rounded_once(
    stored: torch.dtype, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint(tmp_path / "tiny", dtype=stored)), tmp_path)
    ranking, widths = tiny_ranking(), (96, 96, 96)
    delta = random_delta(checkpoint, ranking, widths)
    export_checkpoint(
        checkpoint, ranking, widths, tmp_path / "out", dtype=dtype, card="", progress=False, delta=delta
    )
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert exported.dtype == (dtype or stored)
    with checkpoint.open_tensors() as tensors:
        for layer, found in enumerate(exported.model.layers):
            added = delta.layers[layer]
            query = tensors.get(f"model.layers.{layer}.self_attn.q_proj.weight").float()
            expected = (query + added["q_proj"].product()).to(exported.dtype)
            assert torch.equal(found.self_attn.q_proj.weight, expected)
            down = tensors.get(f"model.layers.{layer}.mlp.down_proj.weight").float()
            kept = down[:, ranking.permutation[layer, :96]]
            expected = (kept + added["down_proj"].product()).to(exported.dtype)
            assert torch.equal(found.mlp.down_proj.weight, expected)


def test_an_export_takes_no_delta_of_another_width(loaded: Loaded, tmp_path: Path) -> None:
    delta = random_delta(loaded.checkpoint, loaded.ranking, (96, 96, 88))
    with pytest.raises(ForeignDeltaError, match="the widths are"):
        export_checkpoint(
            *(loaded.checkpoint, loaded.ranking, (96, 96, 96), tmp_path / "out"),
            dtype=None,
            card="",
            progress=False,
            delta=delta,
        )
    assert not (tmp_path / "out").exists()
