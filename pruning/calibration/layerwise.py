"""Runs a transformers decoder layer by layer, attention and MLP apart, so that many sequences pass one layer
before any of them enters the next.

Knows the decoders of the supported families; not what is measured between the layers.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from pruning.calibration.activations import decoder, mlps
from pruning.calibration.batches import TokenBatch

if TYPE_CHECKING:  # takes a second and 80 MB to import; who has a model has done it
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """What each layer is given beside the residual stream: positions and masks."""

    by_layer: tuple[Mapping[str, Any], ...]


def enter_layers(model: "PreTrainedModel", batch: TokenBatch) -> tuple[Tensor, LayerInputs]:
    """The residual stream before the first layer, [sequences, tokens, hidden], and what else layers get."""
    streams: list[Tensor] = []
    seen: list[Mapping[str, Any]] = []
    with _passing_through(decoder(model).layers, streams, seen):
        decoder(model)(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    return streams[0], LayerInputs(tuple(seen))


class LayerwiseModel:
    """A model taken apart: afterwards it is of use only here.

    Attributes:
        mlps: of all layers, as transformers made them.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self.mlps = mlps(model)
        self._model = cast("Any", model)
        self._layers = list(decoder(model).layers)
        for layer in self._layers:
            layer.mlp = _Nothing()

    @property
    def device(self) -> torch.device:
        return cast("torch.device", self._model.device)

    def embed(self, batch: TokenBatch) -> tuple[Tensor, LayerInputs]:
        """As `enter_layers`."""
        return enter_layers(self._model, batch)

    def attend(self, layer: int, stream: Tensor, inputs: LayerInputs) -> Tensor:
        """The stream with the layer's attention added."""
        return cast("Tensor", self._layers[layer](stream, **inputs.by_layer[layer]))

    def mlp_input(self, layer: int, attended: Tensor) -> Tensor:
        """The norm of what `attend` returned."""
        return cast("Tensor", self._layers[layer].post_attention_layernorm(attended))

    def logits(self, stream: Tensor) -> Tensor:
        """Of the stream after the last layer, [..., vocabulary] in float32."""
        return cast("Tensor", self._model.lm_head(self._model.model.norm(stream)).float())


class _Nothing(nn.Module):
    """Stands where the MLP was, and adds nothing to the stream."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@contextmanager
def _passing_through(
    layers: Iterable[Any], streams: list[Tensor], seen: list[Mapping[str, Any]]
) -> Iterator[None]:
    """Lets the layers hand on the stream as it is, and notes what they are given."""

    def forward(stream: Tensor, **inputs: Any) -> Tensor:
        streams.append(stream)
        seen.append(inputs)
        return stream

    for layer in layers:
        layer.forward = forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
