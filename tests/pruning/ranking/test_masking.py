from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruning.calibration.activations import mlps
from pruning.ranking.masking import keeping, kept_neurons
from pruning.ranking.ranking import rank
from pruning.slicing import slice_model
from tests.tiny import FAMILIES, tiny_checkpoint, tiny_ranking

RANKING = tiny_ranking(seed=3)
WIDTHS = (64, 192, 8)
TOKENS = torch.tensor([[5, 80, 81, 40, 7, 9]])


@pytest.fixture(params=FAMILIES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path, request.param)


def load(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path).eval().requires_grad_(False)


def test_the_first_of_each_layer_in_ranking_order_are_kept() -> None:
    ranking = rank(torch.tensor([[1.0, 5.0, 3.0], [4.0, 4.0, 0.0]]), score="test", profile_digest="p")

    assert kept_neurons(ranking, (1, 2)).tolist() == [[False, True, False], [True, True, False]]


def test_a_masked_model_is_the_sliced_model(path: Path) -> None:
    model = load(path)
    dense = model(TOKENS).logits
    with keeping(model, kept_neurons(RANKING, WIDTHS)):
        masked = model(TOKENS).logits

    assert not torch.allclose(masked, dense, atol=1e-2)
    sliced = slice_model(load(path), RANKING, WIDTHS)(TOKENS).logits
    torch.testing.assert_close(masked, sliced, rtol=1e-4, atol=1e-5)


def test_masking_is_undone_even_after_an_error(path: Path) -> None:
    model = load(path)
    dense = model(TOKENS).logits
    with pytest.raises(RuntimeError), keeping(model, kept_neurons(RANKING, WIDTHS)):
        raise RuntimeError

    assert not any(mlp.down_proj._forward_pre_hooks for mlp in mlps(model))
    assert torch.equal(model(TOKENS).logits, dense)
