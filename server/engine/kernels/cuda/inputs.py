"""What the kernels of a step read of its batch: one buffer of int32, copied to the device at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from server.engine.attention import AttentionSpan
from server.engine.batch import Batch

QUERIES_PER_PROGRAM = 16  # of a prompt
_NOWHERE = -1  # the slot of a token that is not kept


@dataclass(frozen=True)
class Queries:
    """Which queries each program computes.

    Attributes:
        items: [programs, 3] int32: first token in the batch, number of tokens, row of the block tables.
        tables: [requests, n] int32.
        per_program: the most tokens of an item.
        max_keys: no token has more; for how many parts it is worth cutting.
    """

    items: torch.Tensor
    tables: torch.Tensor
    per_program: int
    max_keys: int


class Item(NamedTuple):
    """Tokens of one request that one program of attention computes."""

    first_token: int
    num_tokens: int
    request: int


def items_of(spans: Sequence[AttentionSpan], per_program: int) -> list[Item]:
    """The tokens of all requests, cut into items of so many."""
    return [
        Item(first, min(per_program, span.stop - first), request)
        for request, span in enumerate(spans)
        for first in range(span.start, span.stop, per_program)
    ]


class StepInputs:
    """Room for batches on host and device.

    Args:
        num_tokens: of a batch, at most: what stands behind the last one is computed and kept nowhere.
        num_requests, num_blocks: of its block tables, at most.
        num_items: of what programs of attention compute, at most.

    Attributes:
        token_ids, positions, slots: [num_tokens] on the device.
        widths: [layers, num_tokens] on the device, the neurons that serve each token.
        tables: [num_requests, num_blocks] on the device.
    """

    def __init__(
        self,
        num_layers: int,
        num_tokens: int,
        num_requests: int,
        num_blocks: int,
        num_items: int,
        device: torch.device,
    ) -> None:
        shapes = {
            "token_ids": (num_tokens,),
            "positions": (num_tokens,),
            "slots": (num_tokens,),
            "widths": (num_layers, num_tokens),
            "tables": (num_requests, num_blocks),
            "items": (num_items, 3),
        }
        sizes = [int(np.prod(shape)) for shape in shapes.values()]
        self._host = torch.zeros(sum(sizes), dtype=torch.int32, pin_memory=device.type == "cuda")
        self._device = torch.zeros(sum(sizes), dtype=torch.int32, device=device)

        def views(memory: torch.Tensor) -> list[torch.Tensor]:
            return [
                part.view(shape)
                for part, shape in zip(torch.split(memory, sizes), shapes.values(), strict=True)
            ]

        self._arrays = dict(zip(shapes, (view.numpy() for view in views(self._host)), strict=True))
        self.token_ids, self.positions, self.slots, self.widths, self.tables, self._items = views(
            self._device
        )

    def write(self, batch: Batch, items: Sequence[Item]) -> None:
        """Copies a batch to the device, once the device is done with what was asked of it before."""
        arrays, count = self._arrays, len(batch.token_ids)
        arrays["token_ids"][:count] = batch.token_ids.numpy()
        arrays["positions"][:count] = batch.positions.numpy()
        arrays["positions"][count:] = 0
        arrays["slots"][:count] = batch.slots.numpy()
        arrays["slots"][count:] = _NOWHERE
        arrays["widths"][:, :count] = batch.row_widths()
        arrays["widths"][:, count:] = 0
        for table, span in zip(arrays["tables"], batch.spans, strict=False):
            table[: len(span.block_table)] = span.block_table
        arrays["items"][: len(items)] = items
        # Attention computes something for every token there is room for: of the first request, say.
        free = arrays["items"][len(items) :]
        free[:, 0] = np.arange(len(items), len(arrays["items"]))
        free[:, 1:] = 1, 0
        self._device.copy_(self._host)

    def queries(self, first_item: int, num_items: int, per_program: int, block_size: int) -> Queries:
        """Items [first_item, first_item + num_items), none of more than `per_program` tokens."""
        items = self._items[first_item : first_item + num_items]
        return Queries(items, self.tables, per_program, self.tables.shape[1] * block_size)


def inputs_of(
    batch: Batch, num_layers: int, block_size: int, device: torch.device
) -> tuple[StepInputs, list[Queries]]:
    """A batch as it is: tokens that stand alone are computed one by one, chunks of prompts in pieces."""
    items = items_of(batch.spans, QUERIES_PER_PROGRAM)
    alone = [item for item in items if item.num_tokens == 1]
    chunks = [item for item in items if item.num_tokens > 1]
    longest = max(len(span.block_table) for span in batch.spans)
    inputs = StepInputs(
        num_layers, len(batch.token_ids), len(batch.spans), longest, len(alone) + len(chunks), device
    )
    inputs.write(batch, alone + chunks)
    queries = [
        inputs.queries(0, len(alone), 1, block_size),
        inputs.queries(len(alone), len(chunks), QUERIES_PER_PROGRAM, block_size),
    ]
    return inputs, [work for work in queries if len(work.items)]
