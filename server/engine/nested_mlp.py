"""The gated MLP whose neurons stand in ranking order, so that every variant is a prefix of it.

A batch holds tokens of several variants, sorted widest first. Cut at the widths that occur, the neurons
fall into blocks, and each block multiplies only the tokens whose width reaches it:

            neurons 0 ........ w2 ...... w1 .. w0
    tokens of variant 0 (w0)  ########|#######|####
    tokens of variant 1 (w1)  ########|#######|
    tokens of variant 2 (w2)  ########|

So FLOPs are the sum of what was asked for, and weights are read once however many variants take part. What
low-rank matrices of one variant add is added to its own tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional as F

from pruning.delta import LowRank
from server.engine.delta import DeltaRows, LowRankRows, add_low_rank, rows_of_map
from server.engine.quantization import Weight, linear, multiply, of_inputs, of_outputs, quantize


class NeuronBlock(NamedTuple):
    """Neurons [start, stop) multiply the first `num_tokens` tokens of the batch."""

    start: int
    stop: int
    num_tokens: int


def neuron_blocks(widths: Sequence[int], ends: Sequence[int]) -> list[NeuronBlock]:
    """Cuts one layer's neurons at the widths in a batch.

    Args:
        widths: one per group of tokens, widest first.
        ends: where each group ends in the batch; the last is the number of tokens.

    Returns:
        Blocks from the first neuron on; together they cover each token's width exactly once.
    """
    blocks: list[NeuronBlock] = []
    start = 0
    for width, end in zip(reversed(widths), reversed(ends), strict=True):
        assert width >= start, f"groups must come widest first, not {list(widths)}"
        if width > start:
            blocks.append(NeuronBlock(start, width, end))
            start = width
    return blocks


@dataclass(frozen=True)
class MLPDeltas:
    """What deltas add to the three linear maps; all tokens of one have the width that it was made for."""

    gate: Sequence[LowRankRows] = ()
    up: Sequence[LowRankRows] = ()
    down: Sequence[LowRankRows] = ()

    @classmethod
    def of(cls, deltas: Sequence[DeltaRows], layer: int) -> "MLPDeltas":
        """Those of one layer."""
        return cls(
            gate=rows_of_map(deltas, layer, "gate"),
            up=rows_of_map(deltas, layer, "up"),
            down=rows_of_map(deltas, layer, "down"),
        )


NO_DELTAS = MLPDeltas()


class NestedMLP:
    """y = (act(x Wgᵀ) ⊙ (x Wuᵀ)) Wdᵀ over a prefix of the neurons, chosen per token.

    Args:
        gate, up: [neurons, hidden], neurons in ranking order.
        down: [hidden, neurons], kept neuron by neuron, so that a prefix of neurons is one contiguous piece.
        activation: the model's own.
    """

    def __init__(
        self,
        gate: Weight,
        up: Weight,
        down: Weight,
        activation: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self.gate = gate
        self.up = up
        self.down = down
        self._activation = activation

    def __call__(
        self, x: torch.Tensor, blocks: Sequence[NeuronBlock], deltas: MLPDeltas = NO_DELTAS
    ) -> torch.Tensor:
        """[tokens, hidden] → the same. `blocks` is what `neuron_blocks` made of the batch."""
        assert blocks[0].num_tokens == len(x), "the narrowest variant's neurons serve every token"
        neurons = [self._neurons(x, block, deltas) for block in blocks]
        products = self._products(neurons, blocks)
        y = next(products)
        if len(blocks) == 1 and not deltas.down:
            return y
        total = y.float()  # each block is rounded once, as a whole MLP is; their sum is not rounded again
        for block, product in zip(blocks[1:], products, strict=True):
            total[: block.num_tokens] += product
        for rows in deltas.down:
            total[rows.start : rows.stop] += _inner_product(rows, neurons, blocks)
        return total.to(x.dtype)

    def _neurons(self, x: torch.Tensor, block: NeuronBlock, deltas: MLPDeltas) -> torch.Tensor:
        """h of a block, [num_tokens, stop - start]."""
        start, stop, num_tokens = block
        x = x[:num_tokens]
        gate, up = linear(x, of_outputs(self.gate, start, stop)), linear(x, of_outputs(self.up, start, stop))
        add_low_rank(gate, x, _outputs(deltas.gate, block))
        add_low_rank(up, x, _outputs(deltas.up, block))
        h = self._activation(gate)
        h *= up
        return h

    def _products(
        self, neurons: Sequence[torch.Tensor], blocks: Sequence[NeuronBlock]
    ) -> Iterator[torch.Tensor]:
        """h Wdᵀ of each block."""
        peaks = neurons[0].new_zeros(len(neurons[0]))  # in 8 bits a token has one scale for all its neurons
        if not isinstance(self.down, torch.Tensor):
            for h in neurons:
                peaks[: len(h)] = torch.maximum(peaks[: len(h)], h.abs().amax(1))
        for h, block in zip(neurons, blocks, strict=True):
            weight = of_inputs(self.down, block.start, block.stop)
            if isinstance(weight, torch.Tensor):
                yield h @ weight.T
            else:
                yield multiply(quantize(h, peaks[: len(h)]), weight, h.dtype)


def _inner_product(
    rows: LowRankRows, neurons: Sequence[torch.Tensor], blocks: Sequence[NeuronBlock]
) -> torch.Tensor:
    """B (A h) of a delta of Wd: A h is summed over the blocks of neurons that h comes in."""
    start, stop, matrices = rows
    a, b = matrices.a, matrices.b
    inner = torch.zeros(stop - start, len(a), device=a.device)
    for h, block in zip(neurons, blocks, strict=True):
        if stop <= block.num_tokens:  # else its width does not reach here
            inner += F.linear(h[start:stop], a[:, block.start : block.stop])
    return F.linear(inner.to(b.dtype), b)


def _outputs(rows: Sequence[LowRankRows], block: NeuronBlock) -> list[LowRankRows]:
    """The same for the neurons of a block alone, without tokens whose width does not reach it."""
    return [
        LowRankRows(start, stop, LowRank(matrices.a, matrices.b[block.start : block.stop]))
        for start, stop, matrices in rows
        if stop <= block.num_tokens
    ]
