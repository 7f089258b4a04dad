"""One step's tokens, as a decoder takes them."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from server.engine.attention import AttentionSpan
from server.engine.delta import DeltaRows
from server.engine.nested_mlp import NeuronBlock


@dataclass(frozen=True)
class Batch:
    """One step's tokens, widest variant first.

    Attributes:
        token_ids, positions, slots: [tokens]; a slot is where a token's KV is kept.
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

    def outputs(self) -> "Batch":
        """Only the tokens of `output_rows`, and only the last layer's neurons.

        What the last layer does once keys and values are written does not concern the other tokens.
        """
        rows = self.output_rows

        def moved(row: int) -> int:
            return bisect_left(rows, row)

        kept = torch.tensor(rows, dtype=torch.long, device=self.token_ids.device)
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
