"""Sums up what the MLP neurons of a running model do, batch by batch, in constant memory.

h, the input of a layer's down projection, is read with forward hooks; what it did to the loss is found by
gradients.py. Knows transformers' decoders of the supported families; knows no text, files or scores.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from pruning.calibration.batches import TokenBatch
from pruning.calibration.profile import SequenceMoments, TokenMoments

if TYPE_CHECKING:  # takes a second and 80 MB to import; who has a model has done it
    from transformers import PreTrainedModel

LOGIT_ROWS = 256  # positions whose logits are held at once: vocabularies are large


class MomentSums:
    """Running sums over the batches of one domain. Batches are summed in float32, their sums in float64."""

    def __init__(self, num_layers: int, num_neurons: int) -> None:
        # [prompt or answer; h, |h| or h²; layers; neurons]
        self._sums = torch.zeros(2, 3, num_layers, num_neurons, dtype=torch.float64)
        # [prompt or answer; m or m², where m is a sequence's mean |h|; layers; neurons]
        self._per_sequence = torch.zeros(2, 2, num_layers, num_neurons, dtype=torch.float64)
        self._tokens = [0.0, 0.0]  # as often as they would have to be repeated for their weights
        self._sequences = [0, 0]

    def count(self, batch: TokenBatch) -> None:
        """Counts a batch's tokens and sequences, once for all layers."""
        for part, mask in enumerate((batch.prompt_mask, batch.answer_mask)):
            self._tokens[part] += float(batch.part_weights[:, part].double().sum())
            self._sequences[part] += int(mask.any(dim=1).sum())

    def add(self, layer: int, h: Tensor, batch: TokenBatch) -> None:
        """Adds one layer's h [sequences, tokens, neurons]; padding is left out.

        A token weighs what the token predicted at it weighs, as often as it would have to be repeated for it.
        """
        h = h.detach().float()
        weights = batch.part_weights  # [sequences, 2, tokens]
        by_token = weights.transpose(0, 1).flatten(1)  # [2, tokens of all sequences]
        sums = by_token @ h.flatten(0, 1)  # [2, neurons]
        sizes = h.abs()
        by_sequence = weights @ sizes  # [sequences, 2, neurons]
        squares = by_token @ sizes.square_().flatten(0, 1)
        for moment, found in enumerate((sums, by_sequence.sum(dim=0), squares)):
            self._sums[:, moment, layer] += found.cpu()
        tokens = weights.sum(dim=2, keepdim=True)
        # A part without tokens, such as no answer, adds zero and is not counted.
        means = by_sequence / tokens.where(tokens > 0, 1)
        self._per_sequence[:, 0, layer] += means.sum(dim=0).cpu()
        self._per_sequence[:, 1, layer] += means.square().sum(dim=0).cpu()

    @property
    def prompt(self) -> TokenMoments:
        return TokenMoments(_whole(self._tokens[0]), *self._sums[0])

    @property
    def answer(self) -> TokenMoments:
        return TokenMoments(_whole(self._tokens[1]), *self._sums[1])

    @property
    def per_prompt(self) -> SequenceMoments:
        return SequenceMoments(self._sequences[0], *self._per_sequence[0])

    @property
    def per_answer(self) -> SequenceMoments:
        return SequenceMoments(self._sequences[1], *self._per_sequence[1])


def _whole(count: float) -> float:
    """An int where it is one: as profiles are written down."""
    return int(count) if count.is_integer() else count


class TaylorSums:
    """Running sums over all tokens of |h ∂L/∂h| and its square; float64 [layers, neurons] each."""

    def __init__(self, num_layers: int, num_neurons: int) -> None:
        self.abs_sum = torch.zeros(num_layers, num_neurons, dtype=torch.float64)
        self.sq_sum = torch.zeros_like(self.abs_sum)

    def add(self, layer: int, change: Tensor) -> None:
        """Adds one layer's h ∂L/∂h [sequences, tokens, neurons], zero at padding; overwrites it."""
        self.abs_sum[layer] += change.abs_().sum(dim=(0, 1)).cpu()
        self.sq_sum[layer] += change.square_().sum(dim=(0, 1)).cpu()


def add_moments(model: "PreTrainedModel", batch: TokenBatch, sums: MomentSums) -> None:
    """Runs a batch and adds its activations to `sums`."""
    sums.count(batch)
    with torch.no_grad(), watching(model, lambda layer, h: sums.add(layer, h, batch)):
        decoder(model)(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)


def weight_norms(model: "PreTrainedModel") -> tuple[Tensor, Tensor, Tensor]:
    """Euclidean norms of each neuron's gate row, up row and down column; float64 [layers, neurons] each."""
    norms: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for mlp in mlps(model):
        for found, weight, dim in zip(
            norms, (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight), (1, 1, 0), strict=True
        ):
            found.append(weight.detach().float().norm(dim=dim).double().cpu())
    gate, up, down = (torch.stack(found) for found in norms)
    return gate, up, down


def mlps(model: "PreTrainedModel") -> list[Any]:
    """The MLP modules of a supported model, in layer order."""
    return [layer.mlp for layer in decoder(model).layers]


def decoder(model: "PreTrainedModel") -> Any:
    """A supported model without its head."""
    return cast("Any", model).model


@contextmanager
def watching(model: "PreTrainedModel", see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Calls `see` with a layer's index and its h, whenever the layer's down projection is about to run."""

    def hook_of(layer: int) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda _, inputs: see(layer, inputs[0])

    hooks = [mlp.down_proj.register_forward_pre_hook(hook_of(layer)) for layer, mlp in enumerate(mlps(model))]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
