"""Runs batches forward and back, a few layers at a time, and sums up what each neuron did to the loss.

The pass back needs what every layer computed on the way forward. Held for one group of layers only, it is
computed again for the groups before: less memory for one more pass forward, and the same bits. Knows
transformers' decoders of the supported families; knows no text, files or scores.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pruning.calibration.activations import LOGIT_ROWS, MomentSums, TaylorSums, decoder, watching
from pruning.calibration.batches import IGNORED_LABEL, TokenBatch
from pruning.calibration.layerwise import LayerInputs, enter_layers

if TYPE_CHECKING:  # takes a second and 80 MB to import; who has a model has done it
    from transformers import PreTrainedModel


def add_moments_and_gradients(
    model: "PreTrainedModel",
    batch: TokenBatch,
    sums: MomentSums,
    taylor: TaylorSums,
    *,
    layers_at_once: int,
) -> None:
    """Runs a batch forward and back, and adds its activations to `sums` and h ∂L/∂h to `taylor`.

    L is the negative log-likelihood of each sequence's answer tokens, summed, in nats, each times the root of
    its weight: then a square of ∂L/∂h weighs what its token does, for products between tokens cancel in the
    mean. Parameters get no gradients: only what enters a group of layers requires one. That takes the memory
    of the activations of `layers_at_once` layers, and of one residual stream for each group.
    """
    sums.count(batch)
    layers = range(len(decoder(model).layers))
    groups = [layers[start : start + layers_at_once] for start in range(0, len(layers), layers_at_once)]
    with torch.no_grad():
        stream, inputs = enter_layers(model, batch)
        entering = [stream]  # of each group [sequences, tokens, hidden]
        for group in groups[:-1]:
            entering.append(_run(model, group, entering[-1], inputs))

    def watch(layer: int, h: Tensor) -> None:
        sums.add(layer, h, batch)
        value = h.detach()  # not `h` itself: a hook that holds its own tensor would never be freed

        def add(gradient: Tensor) -> None:
            # No mask: padding comes after the text, so no loss depends on it and its gradient is zero.
            taylor.add(layer, value.float() * gradient)

        h.register_hook(add)  # type: ignore[no-untyped-call]

    gradient: Tensor | None = None
    while groups:
        group, leaf = groups.pop(), entering.pop().detach().requires_grad_()
        with watching(model, watch):
            left = _run(model, group, leaf, inputs)
        if gradient is None:
            _backward_from_loss(model, left, batch)
        else:
            left.backward(gradient)  # type: ignore[no-untyped-call]
        gradient = leaf.grad


def _run(model: "PreTrainedModel", group: Sequence[int], stream: Tensor, inputs: LayerInputs) -> Tensor:
    """The stream after the layers of `group`."""
    layers = decoder(model).layers
    for layer in group:
        stream = layers[layer](stream, **inputs.by_layer[layer])
    return stream


def _backward_from_loss(model: "PreTrainedModel", stream: Tensor, batch: TokenBatch) -> None:
    """Backpropagates L from the last layer's stream. The head sees a few positions at a time."""
    hidden = decoder(model).norm(stream)  # [sequences, tokens, hidden]
    predicting = batch.labels != IGNORED_LABEL
    hidden, labels = hidden[predicting], batch.labels[predicting]  # [positions, hidden], [positions]
    weights = batch.weights[predicting].sqrt()  # [positions]
    head = cast("Any", model).lm_head
    leaf = hidden.detach().requires_grad_()
    for part in torch.split(torch.arange(len(labels), device=labels.device), LOGIT_ROWS):
        loss = cross_entropy(head(leaf[part]).float(), labels[part], reduction="none")
        loss.backward(weights[part])  # type: ignore[no-untyped-call]
    hidden.backward(leaf.grad)
