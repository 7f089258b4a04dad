"""Takes sequences through a model layer by layer, side by side dense, pruned and pruned with corrections, and
fits each layer's correction of W_d on the way.

One pass a layer, over all batches; streams.py keeps what lies between passes, the least squares are
least_squares.py's. What is fitted on what is for compensation.py.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from pruning.calibration.activations import LOGIT_ROWS
from pruning.calibration.batches import IGNORED_LABEL, TokenBatch
from pruning.calibration.layerwise import LayerInputs, LayerwiseModel
from pruning.compensation.least_squares import SecondMoments, choose_ridge, low_rank_ridge
from pruning.compensation.streams import Streams, StreamStore
from pruning.compensation.unfinished import Layer, UnfinishedFit
from pruning.delta import LowRank
from pruning.errors import DeltaError
from pruning.ranking.ranking import Ranking

logger = logging.getLogger(__name__)

RIDGES = (1.0, 1e-1, 1e-2, 1e-3)
# How much of the error that earlier layers have left a layer is to take back. Half is the best or near it at
# each sparsity and rank that was tried on math-mini (docs/decisions/008-deltas.md).
PULL = 0.5

Role = Literal["fitted", "judged", "reported"]


@dataclass(frozen=True, eq=False)
class RoleBatch:
    """Sequences of one role: fitted, judging the ridge, or reported on."""

    role: Role
    tokens: TokenBatch


@dataclass(frozen=True)
class Divergence:
    """KL(dense ‖ pruned) on the reported answers, nats a token, without and with the corrections."""

    tokens: int
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class _Neurons:
    """The MLP of a layer, cut to its width: gate and up [width, hidden], down [hidden, width]."""

    gate: Tensor
    up: Tensor
    down: Tensor
    act: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, mlp: Any, kept: Tensor) -> "_Neurons":
        gate, up, down = mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight
        return cls(gate[kept], up[kept], down[:, kept], mlp.act_fn)

    def activations(self, x: Tensor) -> Tensor:
        """h, [..., width]."""
        return self.act(F.linear(x, self.gate)) * F.linear(x, self.up)


@dataclass(frozen=True, eq=False)
class _Moments:
    """Of one layer: what is fitted, and what chooses the ridge."""

    fitted: SecondMoments
    judged: SecondMoments

    @classmethod
    def of(cls, neurons: _Neurons) -> "_Moments":
        outputs, width = neurons.down.shape
        device = neurons.down.device
        return cls(SecondMoments(width, outputs, device), SecondMoments(width, outputs, device))


class LayerFit:
    """All batches on their way through all layers.

    Args:
        widths: neurons that each layer keeps, the first ones of `ranking`.
        rank: of the corrections.
        store: holds the streams between layers.
    """

    def __init__(
        self,
        model: LayerwiseModel,
        ranking: Ranking,
        widths: Sequence[int],
        rank: int,
        batches: Sequence[RoleBatch],
        store: StreamStore,
    ) -> None:
        self._model = model
        self._ranking = ranking
        self._widths = widths
        self._rank = rank
        self._batches = batches
        self._store = store
        self._inputs: list[LayerInputs] = []

    @torch.inference_mode()
    def run(self, fit: UnfinishedFit, *, progress: bool) -> Divergence:
        """Completes `fit`, layer after layer."""
        for number, batch in enumerate(self._batches):
            stream, inputs = self._model.embed(batch.tokens)
            self._inputs.append(inputs)
            self._store.put(number, Streams(stream, stream, stream if batch.role == "reported" else None))
        neurons: _Neurons | None = None
        total = len(self._widths) * len(self._batches)
        with tqdm(total=total, desc="Compensating", unit="batch", disable=not progress) as bar:
            for layer in range(len(self._widths)):
                before, neurons = neurons, self._neurons(layer)
                moments = None if layer < len(fit.layers) else _Moments.of(neurons)
                for number, batch in enumerate(self._batches):
                    streams = self._store.get(number)
                    if before is not None:
                        streams = self._leave(layer - 1, before, fit.layers[layer - 1], streams)
                    streams = self._attend(layer, number, streams)
                    if moments is not None and batch.role != "reported":
                        self._add(layer, neurons, streams, batch, moments)
                    self._store.put(number, streams)
                    bar.update()
                if moments is not None:
                    found = self._solve(layer, moments)
                    fit.add({} if found is None else {"down_proj": found})
        assert neurons is not None, "a model has layers"
        return self._report(neurons, fit)

    def _neurons(self, layer: int) -> _Neurons:
        kept = self._ranking.permutation[layer, : self._widths[layer]]
        return _Neurons.of(self._model.mlps[layer], kept.to(self._model.device))

    def _attend(self, layer: int, number: int, streams: Streams) -> Streams:
        def attended(stream: Tensor) -> Tensor:
            return self._model.attend(layer, stream, self._inputs[number])

        plain = None if streams.plain is None else attended(streams.plain)
        dense = attended(streams.dense)
        # It leaves the layer at once, for it waits for no correction.
        dense = dense + self._model.mlps[layer](self._model.mlp_input(layer, dense))
        return Streams(dense, attended(streams.corrected), plain)

    def _leave(self, layer: int, neurons: _Neurons, correction: Layer, streams: Streams) -> Streams:
        def normed(attended: Tensor) -> Tensor:
            return self._model.mlp_input(layer, attended)

        h = neurons.activations(normed(streams.corrected))
        corrected = streams.corrected + F.linear(h, neurons.down)
        low_rank = correction.get("down_proj")
        if low_rank is not None:
            a, b = low_rank.a.to(h), low_rank.b.to(h)
            corrected = corrected + F.linear(F.linear(h, a), b)
        plain = streams.plain
        if plain is not None:
            plain = plain + F.linear(neurons.activations(normed(plain)), neurons.down)
        return Streams(streams.dense, corrected, plain)

    def _add(
        self, layer: int, neurons: _Neurons, streams: Streams, batch: RoleBatch, moments: _Moments
    ) -> None:
        present = batch.tokens.attention_mask.bool()
        attended = streams.corrected[present]  # [tokens, hidden]
        x = self._model.mlp_input(layer, attended)
        h = neurons.activations(x)
        missing = self._target(layer, x, streams.dense[present], attended) - F.linear(h, neurons.down)
        weights = 1 / attended.float().square().mean(dim=1)
        sums = moments.fitted if batch.role == "fitted" else moments.judged
        sums.add(h, missing, weights)

    def _target(self, layer: int, x: Tensor, dense: Tensor, corrected: Tensor) -> Tensor:
        """What the corrected model's MLP should add to its stream, [tokens, hidden].

        Args:
            x: its input.
            dense: the dense model's stream after the layer.
            corrected: the corrected model's before its MLP.
        """
        return cast("Tensor", (1 - PULL) * self._model.mlps[layer](x) + PULL * (dense - corrected))

    def _solve(self, layer: int, moments: _Moments) -> LowRank | None:
        if not (moments.fitted.are_finite and moments.judged.are_finite):
            raise _not_finite(f"layer {layer + 1} of {len(self._widths)}")
        choice = choose_ridge(moments.fitted, moments.judged, RIDGES, self._rank)
        logger.info(
            "layer %d of %d, %d neurons: ridge %s leaves %.3f of the squared error",
            *(layer + 1, len(self._widths), self._widths[layer], choice.ridge, choice.unexplained),
        )
        if choice.ridge is None:
            return None
        moments.fitted.merge(moments.judged)
        found = low_rank_ridge(moments.fitted, choice.ridge, self._rank)
        return LowRank(found.a.bfloat16().cpu(), found.b.bfloat16().cpu())

    def _report(self, neurons: _Neurons, fit: UnfinishedFit) -> Divergence:
        """On answers that nothing was fitted on, out of the last layer."""
        before = after = 0.0
        tokens = 0
        for number, batch in enumerate(self._batches):
            if batch.role != "reported":
                continue
            last = len(self._widths) - 1
            streams = self._leave(last, neurons, fit.layers[last], self._store.get(number))
            assert streams.plain is not None
            predicting = batch.tokens.labels != IGNORED_LABEL
            kept = [stream[predicting] for stream in (streams.dense, streams.plain, streams.corrected)]
            tokens += len(kept[0])
            for rows in zip(*(torch.split(stream, LOGIT_ROWS) for stream in kept), strict=True):
                dense, plain, corrected = (F.log_softmax(self._model.logits(row), dim=-1) for row in rows)
                before += float(F.kl_div(plain, dense, reduction="sum", log_target=True))
                after += float(F.kl_div(corrected, dense, reduction="sum", log_target=True))
        if not math.isfinite(before + after):
            raise _not_finite("the last layer")
        return Divergence(tokens, before / tokens, after / tokens)


def _not_finite(layer: str) -> DeltaError:
    return DeltaError(
        f"what {layer} computes is not finite in this precision: fit in bfloat16 or float32 (--dtype)"
    )
