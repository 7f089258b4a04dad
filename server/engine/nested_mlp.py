"""The gated MLP whose neurons stand in ranking order, so that every variant is a prefix of it.

A batch holds tokens of several variants, sorted widest first. Cut at the widths that occur, the neurons
fall into blocks, and each block multiplies only the tokens whose width reaches it:

            neurons 0 ........ w2 ...... w1 .. w0
    tokens of variant 0 (w0)  ########|#######|####
    tokens of variant 1 (w1)  ########|#######|
    tokens of variant 2 (w2)  ########|

So FLOPs are the sum of what was asked for, and weights are read once however many variants take part.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F


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

    def __call__(self, x: torch.Tensor, blocks: Sequence[NeuronBlock]) -> torch.Tensor:
        """[tokens, hidden] → the same. `blocks` is what `neuron_blocks` made of the batch."""
        first, *rest = blocks
        assert first.num_tokens == len(x), "the narrowest variant's neurons serve every token"
        y = self._block(x, first)
        if not rest:
            return y
        total = y.float()  # each block is rounded once, as a whole MLP is; their sum is not rounded again
        for block in rest:
            total[: block.num_tokens] += self._block(x, block)
        return total.to(x.dtype)

    def _block(self, x: torch.Tensor, block: NeuronBlock) -> torch.Tensor:
        start, stop, num_tokens = block
        x = x[:num_tokens]
        h = self._activation(F.linear(x, self.gate[start:stop]))  # [num_tokens, stop - start]
        h *= F.linear(x, self.up[start:stop])
        return h @ self.down[start:stop]
