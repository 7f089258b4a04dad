"""The decoder on a CUDA device.

A step of few tokens takes the device less time than launching its kernels one by one takes the host. Such
steps are kept as CUDA graphs, one for each number of tokens (rounded up) and widest variant, made when one
first occurs; a batch of several variants multiplies the neurons of the widest, and what a token has no neuron
for is zeroed: while reading the weights takes longer than multiplying them that costs nothing. Larger steps,
and those with deltas, are launched kernel by kernel, and multiply what was asked for (nested_mlp.py).
"""

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F
from transformers import PretrainedConfig

from server.engine.batch import Batch
from server.engine.delta import DeltaRows, add_low_rank, rows_of_map
from server.engine.kernels.cuda.attention import attend
from server.engine.kernels.cuda.elementwise import add_and_norm, gate, rotate_and_keep
from server.engine.kernels.cuda.graphs import GraphedSteps
from server.engine.kernels.cuda.inputs import Queries, StepInputs, inputs_of
from server.engine.model import TorchDecoder
from server.engine.nested_mlp import MLPDeltas, NestedMLP
from server.engine.quantization import linear, of_inputs, of_outputs, rows_of
from server.engine.weights import ModelWeights

MLP = Callable[[int, torch.Tensor], torch.Tensor]  # layer, [tokens, hidden] → the same


class CudaDecoder(TorchDecoder):
    """A `Decoder`; what `forward` gives is normed. Args as of `TorchDecoder`, and

    Args:
        small_step: tokens of the steps that are kept as graphs, at most.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        weights: ModelWeights,
        max_model_len: int,
        num_blocks: int,
        block_size: int,
        small_step: int,
    ) -> None:
        super().__init__(config, weights, max_model_len, num_blocks, block_size)
        self._device = weights.norm.device
        self._block_size = block_size
        self._mlps = [NestedMLP(layer.gate, layer.up, layer.down, F.silu) for layer in weights.layers]
        self._graphs = GraphedSteps(
            self._graphed, len(weights.layers), small_step, -(-max_model_len // block_size), self._device
        )

    def forward(self, batch: Batch) -> torch.Tensor:
        """What the layers make of `batch.output_rows`, [rows, hidden]; keeps the batch's keys and values."""
        with torch.cuda.device_of(self._weights.norm):  # type: ignore[no-untyped-call]
            hidden = self._graphs.run(batch) if self._graphs.can_hold(batch) else self._launched(batch)
            if batch.wants_all:
                return hidden
            return hidden[self._tensor(batch.output_rows)]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, vocabulary] in float32, of rows that `forward` gave."""
        return linear(hidden, self._weights.head).float()

    def likeliest(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows] the token of the largest logit, the lowest id on a tie, of rows that `forward` gave."""
        return linear(hidden, self._weights.head).argmax(-1)

    def _launched(self, batch: Batch) -> torch.Tensor:
        inputs, work = inputs_of(batch, len(self._kv), self._block_size, self._device)

        def mlp(layer: int, x: torch.Tensor) -> torch.Tensor:
            return self._mlps[layer](x, batch.neuron_blocks[layer], MLPDeltas.of(batch.deltas, layer))

        return self._layers(inputs, work, mlp, batch.deltas)

    def _graphed(self, inputs: StepInputs, widest: Sequence[int]) -> torch.Tensor:
        """All rows of `inputs`. `widest`: per layer, the neurons of the widest variant."""

        def mlp(layer: int, x: torch.Tensor) -> torch.Tensor:
            weights, width = self._weights.layers[layer], widest[layer]
            gates = linear(x, of_outputs(weights.gate, 0, width))
            ups = linear(x, of_outputs(weights.up, 0, width))
            return linear(gate(gates, ups, inputs.widths[layer]), of_inputs(weights.down, 0, width))

        work = inputs.queries(0, len(inputs.token_ids), 1, self._block_size)
        return self._layers(inputs, [work], mlp, ())

    def _layers(
        self, inputs: StepInputs, work: Sequence[Queries], mlp: MLP, deltas: Sequence[DeltaRows]
    ) -> torch.Tensor:
        """[tokens, hidden], normed."""
        weights, geometry, eps = self._weights, self._geometry, self._geometry.norm_eps
        embedded = rows_of(weights.embedding, inputs.token_ids).to(weights.norm.dtype)
        norms = [*(layer.input_norm for layer in weights.layers[1:]), weights.norm]
        hidden, x = add_and_norm(embedded, None, weights.layers[0].input_norm, eps)
        for index, (layer, kv, next_norm) in enumerate(zip(weights.layers, self._kv, norms, strict=True)):
            qkv = linear(x, layer.qkv, layer.qkv_bias)
            add_low_rank(qkv, x, rows_of_map(deltas, index, "qkv"))
            head_norms = (
                None if layer.q_norm is None or layer.k_norm is None else (layer.q_norm, layer.k_norm)
            )
            queries = rotate_and_keep(
                qkv, geometry.num_heads, head_norms, eps, self._rotary, inputs.positions, inputs.slots, kv
            )
            attended = torch.empty_like(queries)
            for part in work:
                attend(queries, inputs.positions, part, kv, geometry.windows[index], attended)
            attended = attended.flatten(1)
            output = linear(attended, layer.output, layer.output_bias)
            add_low_rank(output, attended, rows_of_map(deltas, index, "output"))
            hidden, x = add_and_norm(hidden, output, layer.mlp_norm, eps)
            hidden, x = add_and_norm(hidden, mlp(index, x), next_norm, eps)
        return x
