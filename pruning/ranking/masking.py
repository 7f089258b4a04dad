"""Runs a loaded transformers model as if some of its neurons were not there. Changes and copies no weights.

Slower than slicing.py, which computes less; undone at once, and so the way to try many variants.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pruning.calibration.activations import mlps
from pruning.ranking.ranking import Ranking

if TYPE_CHECKING:  # takes a second and 80 MB to import; who has a model has done it
    from transformers import PreTrainedModel


def kept_neurons(ranking: Ranking, widths: Sequence[int]) -> Tensor:
    """bool [layers, neurons]: the first `widths[l]` neurons of every layer `l`, by their original indices."""
    layers, neurons = ranking.permutation.shape
    assert len(widths) == layers
    is_kept = torch.arange(neurons) < torch.tensor(widths).unsqueeze(1)  # in ranking order
    return torch.zeros(layers, neurons, dtype=torch.bool).scatter_(1, ranking.permutation, is_kept)


@contextmanager
def keeping(model: "PreTrainedModel", kept: Tensor) -> Iterator[None]:
    """Sets h to zero wherever `kept`, bool [layers, neurons], is false: as if those neurons were not there.

    What watches h meanwhile sees the zeros, if it was set up meanwhile.
    """

    def hook_of(mask: Tensor) -> Callable[[nn.Module, tuple[Tensor]], Tensor]:
        return lambda _, inputs: inputs[0] * mask

    hooks = [
        mlp.down_proj.register_forward_pre_hook(hook_of(mask.to(model.device, model.dtype)))
        for mlp, mask in zip(mlps(model), kept, strict=True)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
