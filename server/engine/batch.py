"""One step's tokens, as a decoder takes them."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from server.engine.attention import AttentionSpan
from server.engine.delta import DeltaRows
from server.engine.nested_mlp import NeuronBlock


@dataclass(frozen=True)
class Batch:
    """One step's tokens, widest variant first.

    Attributes:
        token_ids, positions, slots: [tokens], on the CPU; a slot is where a token's KV is kept.
        spans: the same tokens request by request, each with where its KV is; in order, without gaps.
        neuron_blocks: per layer, which neurons multiply which tokens.
        output_rows: the tokens whose logits somebody may want, in order; those of a request are neighbours.
        deltas: the tokens of variants that have one, in order; all tokens of one are of one width.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    spans: Sequence[AttentionSpan]
    neuron_blocks: Sequence[Sequence[NeuronBlock]]
    output_rows: Sequence[int]
    deltas: Sequence[DeltaRows] = ()

    @property
    def wants_all(self) -> bool:
        """Whether every token is among `output_rows`."""
        return len(self.output_rows) == len(self.token_ids)

    def row_widths(self) -> "np.ndarray[tuple[int, int], np.dtype[np.int32]]":
        """[layers, tokens]: the neurons that serve each token."""
        widths = np.empty((len(self.neuron_blocks), len(self.token_ids)), dtype=np.int32)
        for row, blocks in zip(widths, self.neuron_blocks, strict=True):
            for block in blocks:  # from the narrowest on: what reaches further overwrites
                row[: block.num_tokens] = block.stop
        return widths

    def outputs(self) -> "Batch":
        """Only the tokens of `output_rows`, and only the last layer's neurons.

        What the last layer does once keys and values are written does not concern the other tokens.
        """
        rows = self.output_rows

        def moved(row: int) -> int:
            return bisect_left(rows, row)

        kept = torch.tensor(rows, dtype=torch.long)
        return Batch(
            token_ids=self.token_ids[kept],
            positions=self.positions[kept],
            slots=self.slots[kept],
            spans=[
                AttentionSpan(start, stop, span.first_position + rows[start] - span.start, span.block_table)
                for span in self.spans
                if (start := moved(span.start)) < (stop := moved(span.stop))
            ],
            neuron_blocks=[
                [
                    block._replace(num_tokens=moved(block.num_tokens))
                    for block in self.neuron_blocks[-1]
                    if moved(block.num_tokens)
                ]
            ],
            output_rows=range(len(rows)),
            deltas=[
                delta._replace(start=moved(delta.start), stop=moved(delta.stop))
                for delta in self.deltas
                if moved(delta.start) < moved(delta.stop)
            ],
        )
