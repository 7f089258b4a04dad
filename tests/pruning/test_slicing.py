from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruning.calibration.activations import mlps
from pruning.errors import ProfileError
from pruning.slicing import slice_model
from tests.tiny import FAMILIES, tiny_checkpoint, tiny_ranking

TOKENS = torch.tensor([[5, 80, 81, 40, 7, 9], [30, 31, 60, 61, 62, 63]])


def load(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path).eval().requires_grad_(False)


@pytest.mark.parametrize("family", FAMILIES)
def test_slicing_is_masking_the_neurons_left_out(family: str, tmp_path: Path) -> None:
    path, widths = tiny_checkpoint(tmp_path, family), (192, 40, 8)
    masked, order = load(path), tiny_ranking()
    for layer, mlp in enumerate(mlps(masked)):
        kept = torch.zeros(192)
        kept[order.permutation[layer, : widths[layer]]] = 1
        mlp.down_proj.register_forward_pre_hook(lambda _, args, kept=kept: args[0] * kept)
    sliced = slice_model(load(path), order, widths)

    torch.testing.assert_close(sliced(TOKENS).logits, masked(TOKENS).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(sliced(TOKENS).logits, load(path)(TOKENS).logits, atol=1e-2)
    assert [mlp.down_proj.in_features for mlp in mlps(sliced)] == list(widths)


def test_equal_widths_make_a_checkpoint_that_loads_again(tmp_path: Path) -> None:
    sliced = slice_model(load(tiny_checkpoint(tmp_path / "dense")), tiny_ranking(), (64, 64, 64))
    sliced.save_pretrained(tmp_path / "sliced")

    assert torch.equal(load(tmp_path / "sliced")(TOKENS).logits, sliced(TOKENS).logits)


def test_the_weights_left_out_are_freed(tmp_path: Path) -> None:
    sliced = slice_model(load(tiny_checkpoint(tmp_path)), tiny_ranking(), (8, 8, 8))

    for mlp in mlps(sliced):
        for projection in (mlp.gate_proj, mlp.up_proj, mlp.down_proj):
            assert projection.weight.untyped_storage().nbytes() == 8 * 64 * 4


@pytest.mark.parametrize("widths", [(8, 8), (8, 8, 0), (8, 8, 193)])
def test_widths_that_do_not_fit_are_refused(widths: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="3 from 1 to 192 fit"):
        slice_model(load(tiny_checkpoint(tmp_path)), tiny_ranking(), widths)


@pytest.mark.parametrize("shape", [(2, 192), (3, 128)])
def test_a_ranking_of_another_model_is_refused(shape: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"model has \[3, 192\]; rank a profile of this model"):
        slice_model(load(tiny_checkpoint(tmp_path)), tiny_ranking(*shape), (8, 8, 8))
