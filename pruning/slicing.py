"""Cuts the MLPs of a loaded transformers model down to a variant's widths, physically, and merges deltas.

The reference that served variants, which are views, and exports are compared with.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pruning.calibration.activations import mlps
from pruning.delta import Delta, weight_name
from pruning.errors import ProfileError
from pruning.ranking.ranking import Ranking

if TYPE_CHECKING:  # takes a second and 80 MB to import; who has a model has done it
    from transformers import PreTrainedModel


def slice_model(model: "PreTrainedModel", ranking: Ranking, widths: Sequence[int]) -> "PreTrainedModel":
    """Keeps the first `widths[l]` neurons of every layer `l`, in ranking order.

    Changes the model in place and returns it. Its configuration names one width for all layers, so it is
    updated only where they are equal; a model of unequal widths runs, but cannot be saved and loaded again.

    Raises:
        ProfileError: the ranking is of another model, or the widths do not fit it.
    """
    layers = mlps(model)
    check_fit(ranking, widths, len(layers), layers[0].down_proj.in_features)
    for mlp, permutation, width in zip(layers, ranking.permutation, widths, strict=True):
        kept = permutation[:width].to(mlp.down_proj.weight.device)
        mlp.gate_proj = _linear(mlp.gate_proj.weight[kept])
        mlp.up_proj = _linear(mlp.up_proj.weight[kept])
        mlp.down_proj = _linear(mlp.down_proj.weight[:, kept])
        mlp.intermediate_size = width
    if len(set(widths)) == 1:
        model.config.intermediate_size = widths[0]
    return model


def merge_delta(model: "PreTrainedModel", delta: Delta) -> "PreTrainedModel":
    """Adds B A to the weights of a model that was cut to the delta's widths. Changes it in place."""
    for layer, maps in enumerate(delta.layers):
        for projection, low_rank in maps.items():
            weight = model.get_parameter(weight_name(layer, projection))
            with torch.no_grad():
                weight.copy_(weight.float() + low_rank.product().to(weight.device))
    return model


def check_fit(ranking: Ranking, widths: Sequence[int], num_layers: int, num_neurons: int) -> None:
    """Raises ProfileError unless ranking and widths are of a model with that many layers and neurons each."""
    shape = (num_layers, num_neurons)
    if tuple(ranking.permutation.shape) != shape:
        raise ProfileError(
            f"the ranking orders {list(ranking.permutation.shape)} [layers, neurons], but the model has "
            f"{list(shape)}; rank a profile of this model"
        )
    if len(widths) != num_layers or not all(1 <= width <= num_neurons for width in widths):
        raise ProfileError(
            f"the widths are {list(widths)}; {num_layers} from 1 to {num_neurons} fit the model"
        )


def _linear(weight: Tensor) -> nn.Linear:
    """A linear layer without bias whose weight [out, in] is a copy of `weight`."""
    out_features, in_features = weight.shape
    linear = nn.Linear(in_features, out_features, bias=False, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
    return linear
