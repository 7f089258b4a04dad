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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional as F

from pruning.delta import LowRank
from server.engine.delta import LowRankRows, add_low_rank


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


NO_DELTAS = MLPDeltas()


class NestedMLP:
    """y = (act(x Wgᵀ) ⊙ (x Wuᵀ)) Wdᵀ over a prefix of the neurons, chosen per token.

    Args:
        gate, up, down: [neurons, hidden], neurons in ranking order; `down` is Wd transposed, so that a prefix
            of neurons is one contiguous piece of each.
        activation: the model's own.
    """

    def __init__(
        self,
        gate: torch.Tensor,
        up: torch.Tensor,
        down: torch.Tensor,
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
        first, *rest = blocks
        assert first.num_tokens == len(x), "the narrowest variant's neurons serve every token"
        inner = [_InnerSum(rows) for rows in deltas.down]
        y = self._block(x, first, deltas, inner)
        if not rest and not inner:
            return y
        total = y.float()  # each block is rounded once, as a whole MLP is; their sum is not rounded again
        for block in rest:
            total[: block.num_tokens] += self._block(x, block, deltas, inner)
        for added in inner:
            total[added.rows.start : added.rows.stop] += added.product()
        return total.to(x.dtype)

    def _block(
        self, x: torch.Tensor, block: NeuronBlock, deltas: MLPDeltas, inner: Sequence["_InnerSum"]
    ) -> torch.Tensor:
        start, stop, num_tokens = block
        x = x[:num_tokens]
        gate, up = F.linear(x, self.gate[start:stop]), F.linear(x, self.up[start:stop])
        add_low_rank(gate, x, _outputs(deltas.gate, block))
        add_low_rank(up, x, _outputs(deltas.up, block))
        h = self._activation(gate)  # [num_tokens, stop - start]
        h *= up
        for added in inner:
            added.add(h, block)
        return h @ self.down[start:stop]


class _InnerSum:
    """A h of one delta of Wd, summed over the blocks of neurons that h comes in."""

    def __init__(self, rows: LowRankRows) -> None:
        self.rows = rows
        self._sum: torch.Tensor | None = None  # [tokens of the delta, rank]

    def add(self, h: torch.Tensor, block: NeuronBlock) -> None:
        """`h`: [block.num_tokens, neurons of the block]."""
        start, stop, matrices = self.rows
        if stop > block.num_tokens:  # its width does not reach here
            return
        part = F.linear(h[start:stop], matrices.a[:, block.start : block.stop]).float()
        self._sum = part if self._sum is None else self._sum + part

    def product(self) -> torch.Tensor:
        assert self._sum is not None, "the first block serves every token"
        return F.linear(self._sum.to(self.rows.matrices.b.dtype), self.rows.matrices.b)


def _outputs(rows: Sequence[LowRankRows], block: NeuronBlock) -> list[LowRankRows]:
    """The same for the neurons of a block alone, without tokens whose width does not reach it."""
    return [
        LowRankRows(start, stop, LowRank(matrices.a, matrices.b[block.start : block.stop]))
        for start, stop, matrices in rows
        if stop <= block.num_tokens
    ]
