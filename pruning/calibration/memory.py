"""What running a model takes in memory, part by part, and whether a bound leaves room for it.

Estimates of tensors that are held at once; what Python and torch take themselves comes on top. Runs at most
one layer of a model, to see what autograd keeps of it.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pruning.calibration.activations import LOGIT_ROWS, decoder
from pruning.calibration.batches import TokenBatch
from pruning.calibration.layerwise import enter_layers
from pruning.errors import MemoryBoundError

if TYPE_CHECKING:  # takes a second and 80 MB to import; who has a model has done it
    from transformers import PreTrainedModel

UNIT = 2**30 / 1000  # a message tells GiB with three digits, rounded up: what it names is enough
FLOAT32_BYTES = 4


def spare_bytes(work: str, parts: Mapping[str, int], bound_bytes: int, way_out: str) -> int:
    """What `bound_bytes` leave beside `parts`, the least that `work` takes.

    Args:
        work, way_out: for the message: who needs it, and what to do beside raising the bound.

    Raises:
        MemoryBoundError: they leave nothing.
    """
    spare = bound_bytes - sum(parts.values())
    if spare < 0:
        told = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())
        raise MemoryBoundError(
            f"{work} takes at least {_gib(sum(parts.values()))} GiB: {told}; the bound is "
            f"{bound_bytes / 2**30:.3f}: raise --max-memory, or {way_out}"
        )
    return spare


def weight_bytes(model: "PreTrainedModel") -> int:
    """Of all parameters; those that are tied count once."""
    return sum(parameter.nbytes for parameter in model.parameters())


def logits_bytes(model: "PreTrainedModel", copies: int) -> int:
    """Of as many positions as are held at once, in float32, `copies` times."""
    return copies * LOGIT_ROWS * int(model.config.vocab_size) * FLOAT32_BYTES


def layer_bytes(model: "PreTrainedModel", batch: TokenBatch) -> int:
    """What is held of one layer of `batch` between its pass forward and its pass back.

    That is what autograd keeps, found by running the first layer, and h, which a hook on its gradient keeps.
    """
    with torch.no_grad():
        stream, inputs = enter_layers(model, batch)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: dict[int, int] = {}

    def see(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        output = decoder(model).layers[0](stream.detach().requires_grad_(), **inputs.by_layer[0])
    assert isinstance(output, Tensor)  # kept until here: a storage that is freed may be used twice
    h_bytes = batch.input_ids.numel() * int(model.config.intermediate_size) * stream.element_size()
    return sum(held.values()) + h_bytes


def _gib(size: int) -> str:
    return f"{math.ceil(size / UNIT) / 1000:.3f}"
