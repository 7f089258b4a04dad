"""A pruned network with low-rank matrices to be trained, at one width or at several nested ones.

The matrices are peft's; what comes out are the pairs (A, B) of a delta. Knows no data, losses or files.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from pruning.calibration.activations import decoder, mlps
from pruning.delta import PROJECTIONS, LowRank, Projection
from pruning.errors import DeltaError
from pruning.ranking.ranking import Ranking
from pruning.recovery.packing import PackedRow
from pruning.slicing import slice_model

if TYPE_CHECKING:  # takes a second and 80 MB to import; who has a model has done it
    from transformers import PreTrainedModel

ADAPTER = "default"
NEURON_OUTPUTS: tuple[Projection, ...] = ("gate_proj", "up_proj")  # whose outputs are neurons
NEURON_INPUTS: tuple[Projection, ...] = ("down_proj",)

Layers = tuple[Mapping[Projection, LowRank], ...]


@dataclass(frozen=True)
class AdapterSettings:
    """The matrices that are trained.

    Attributes:
        rank: of B A, in every linear map of every layer.
        alpha: B A is scaled by alpha / rank.
        seed: of A's first values; B begins at zero.
    """

    rank: int
    alpha: float
    seed: int


class AdaptedNetwork:
    """Takes over a whole model, cuts it to the widest of the widths, and freezes all but the matrices.

    Args:
        model: on its device, in the dtype that it is to compute in; the matrices are float32.
        widths: of each variant, one number a layer, the widest variant first; each is nowhere wider than
            the one before.
        starts: matrices that each variant has already, or none. They stay as they are, beside those that are
            trained: a fit is an optimum, and the first steps of an optimizer would lead away from it.
        recompute: keep only what enters each layer, and compute the layer again on the way back: more work
            by one pass forward, far less memory.

    Raises:
        DeltaError: peft is not installed.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        ranking: Ranking,
        widths: Sequence[Sequence[int]],
        settings: AdapterSettings,
        *,
        starts: Sequence[Layers] = (),
        recompute: bool = False,
    ) -> None:
        assert len(starts) in (0, len(widths)), "a delta belongs to one variant"
        assert all(
            wide >= narrow
            for wider, narrower in pairwise(widths)
            for wide, narrow in zip(wider, narrower, strict=True)
        )
        self._model = slice_model(model, ranking, widths[0])
        self._widths = [tuple(variant) for variant in widths]
        self._variant = 0
        self._starts = list(starts)
        _add_adapters(self._model, settings)
        # In layer order, so that the same settings give the same order of parameters.
        self._maps: list[dict[Projection, Any]] = [
            {name: getattr(_parent(layer, name), name) for name in PROJECTIONS}
            for layer in decoder(self._model).layers
        ]
        for layer, maps in enumerate(self._maps):
            for name, linear in maps.items():
                linear.lora_A.float()
                linear.lora_B.float()
                # They are rounded to the network's dtype where they multiply (see `hidden`). Else its
                # activations would be made float32 before each of them, and the sum rounded after.
                linear.cast_input_dtype_enabled = False
                if any(name in start[layer] for start in starts):
                    linear.register_forward_hook(self._start_of(layer, name))
        if len(widths) > 1:
            for layer, mlp in enumerate(mlps(self._model)):
                mlp.down_proj.register_forward_pre_hook(self._mask_of(layer))
        if recompute:
            for layer in decoder(self._model).layers:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)

    @property
    def device(self) -> torch.device:
        return self._model.device

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """From the last layer's normed output to logits."""
        return cast("Callable[[Tensor], Tensor]", cast("Any", self._model).lm_head)

    @property
    def num_variants(self) -> int:
        return len(self._widths)

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name, always in the same order; float32."""
        return {
            f"{layer}.{name}.{part}": matrices[ADAPTER].weight
            for layer, maps in enumerate(self._maps)
            for name, linear in maps.items()
            for part, matrices in (("a", linear.lora_A), ("b", linear.lora_B))
        }

    def hidden(self, row: PackedRow, variant: int) -> Tensor:
        """The head's inputs before each answer token of `row`, [answer tokens, hidden].

        Computed at the widths of that variant. Propagate back before the next call.
        """
        self._variant = variant
        dtype = self._model.dtype
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            output = decoder(self._model)(
                input_ids=row.input_ids, position_ids=row.position_ids, use_cache=False
            ).last_hidden_state  # [1, tokens, hidden]
        return cast("Tensor", output[0, row.predicting])

    @torch.no_grad()
    def layers(self, variant: int) -> Layers:
        """That variant's delta: its start and what was trained, as one pair a map, B with its scale.

        bfloat16, on the CPU.
        """
        found: list[dict[Projection, LowRank]] = []
        for layer, (width, maps) in enumerate(zip(self._widths[variant], self._maps, strict=True)):
            pairs: dict[Projection, LowRank] = {}
            for name, linear in maps.items():
                a = linear.lora_A[ADAPTER].weight
                b = linear.lora_B[ADAPTER].weight * linear.scaling[ADAPTER]
                a = a[:, :width] if name in NEURON_INPUTS else a
                b = b[:width] if name in NEURON_OUTPUTS else b
                if self._starts and name in self._starts[variant][layer]:
                    start = self._starts[variant][layer][name]
                    a, b = torch.cat([start.a.to(a), a]), torch.cat([start.b.to(b), b], dim=1)
                pairs[name] = LowRank(_as_stored(a), _as_stored(b))
            found.append(pairs)
        return tuple(found)

    @torch.no_grad()
    def round(self) -> None:
        """Makes what was trained as exact as a delta stores it."""
        for maps in self._maps:
            for linear in maps.values():
                a, b = linear.lora_A[ADAPTER].weight, linear.lora_B[ADAPTER].weight
                scale = linear.scaling[ADAPTER]
                a.copy_(a.bfloat16())
                b.copy_((b * scale).bfloat16() / scale)

    @torch.no_grad()
    def forget(self) -> None:
        """Takes away what was trained, and the starts: the pruned network is left."""
        self._starts = []
        for maps in self._maps:
            for linear in maps.values():
                linear.lora_B[ADAPTER].weight.zero_()

    def _start_of(self, layer: int, name: Projection) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
        """Adds what the variant at hand has there already."""
        linear = self._maps[layer][name]
        pairs = [
            self._padded(start[layer][name], linear.in_features, linear.out_features)
            if name in start[layer]
            else None
            for start in self._starts
        ]

        def add(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            pair = pairs[self._variant] if self._starts else None
            return output if pair is None else output + inputs[0] @ pair.a.T @ pair.b.T

        return add

    def _padded(self, pair: LowRank, inputs: int, outputs: int) -> LowRank:
        """With nothing for the neurons that only wider variants have."""
        a = pad(pair.a, (0, inputs - pair.a.shape[1]))
        b = pad(pair.b, (0, 0, 0, outputs - pair.b.shape[0]))
        return LowRank(a.to(self.device, self._model.dtype), b.to(self.device, self._model.dtype))

    def _mask_of(self, layer: int) -> Callable[[nn.Module, tuple[Tensor]], Tensor]:
        """Sets to zero the neurons that the variant at hand does not have."""
        device = self.device
        masks = [
            (torch.arange(self._widths[0][layer], device=device) < widths[layer]).to(self._model.dtype)
            for widths in self._widths
        ]
        return lambda _, inputs: inputs[0] * masks[self._variant]


def _add_adapters(model: "PreTrainedModel", settings: AdapterSettings) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise DeltaError("training needs peft: pip install 'secateur[recover]'") from error
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=cast("int", settings.alpha),
        target_modules=list(PROJECTIONS),
        lora_dropout=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        inject_adapter_in_model(config, model)
    model.train(False)


def _parent(layer: Any, name: Projection) -> Any:
    return layer.mlp if name in (*NEURON_INPUTS, *NEURON_OUTPUTS) else layer.self_attn


def _as_stored(matrix: Tensor) -> Tensor:
    return matrix.bfloat16().cpu().contiguous()
