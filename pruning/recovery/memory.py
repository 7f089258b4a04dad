"""What a training takes in memory, and whether activations have to be computed again. Allocates nothing."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pruning.checkpoints.checkpoint import Checkpoint
from pruning.errors import MemoryBoundError
from pruning.recovery.loss import LOGIT_ROWS

logger = logging.getLogger(__name__)

ADAM_COPIES = 5  # of a matrix in float32: itself, the best, its gradient and two moments
LOGIT_COPIES = 6  # of the logits in float32 that the loss and its gradient hold at once
GIB = 2**30


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes, estimated for the supported decoders.

    Attributes:
        weights: of the whole model, which is loaded before it is cut.
        matrices: with their gradients and the optimizer's moments, and those that were there already.
        activations: of one row, kept for the way back.
        recomputed: of one row, where only what enters each layer is kept.
    """

    weights: int
    matrices: int
    logits: int
    activations: int
    recomputed: int

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        widths: Sequence[int],
        rank: int,
        *,
        row_tokens: int,
        start_parameters: int = 0,
        dtype: torch.dtype,
    ) -> "TrainingMemory":
        architecture = checkpoint.architecture
        hidden = architecture.hidden_size
        queries = architecture.num_heads * architecture.head_dim
        keys = architecture.num_kv_heads * architecture.head_dim
        with checkpoint.open_tensors() as reader:
            numbers = sum(torch.Size(reader.shape(name)).numel() for name in reader.names)
        # Four maps of attention, to and from the heads; three of the MLP, the width on one side.
        attention = 2 * (hidden + queries) + 2 * (hidden + keys)
        matrices = sum(rank * (attention + 3 * (hidden + width)) for width in widths)
        # Each A keeps its input in float32 (five of hidden_size, one of the heads', one of the width); norms,
        # products and nonlinearities keep theirs, and attention the mask that tells packed sequences apart.
        around = hidden * (5 * 4 + 8 * dtype.itemsize) + queries * (4 + 4 * dtype.itemsize)
        mask = row_tokens**2 * dtype.itemsize
        layers = [mask + row_tokens * (around + width * (4 + 5 * dtype.itemsize)) for width in widths]
        return cls(
            weights=numbers * dtype.itemsize,
            matrices=ADAM_COPIES * 4 * matrices + start_parameters * dtype.itemsize,
            logits=LOGIT_COPIES * 4 * LOGIT_ROWS * checkpoint.config.vocab_size,
            activations=sum(layers),
            recomputed=max(layers) + len(layers) * row_tokens * hidden * dtype.itemsize,
        )

    def choose_recompute(self, asked: bool | None, max_bytes: int) -> bool:
        """Whether to compute activations again: as asked, else only where there is no room for them.

        Raises:
            MemoryBoundError: more than `max_bytes` would be needed.
        """
        fixed = self.weights + self.matrices + self.logits
        recompute = fixed + self.activations > max_bytes if asked is None else asked
        activations = self.recomputed if recompute else self.activations
        if fixed + activations > max_bytes:
            way_out = "lower --row-tokens" if recompute else "set --recompute on"
            raise MemoryBoundError(
                f"the training would take {(fixed + activations) / GIB:.2f} GiB: weights "
                f"{self.weights / GIB:.2f}, matrices and their optimizer {self.matrices / GIB:.2f}, logits "
                f"{self.logits / GIB:.2f}, activations {activations / GIB:.2f}; --max-memory allows "
                f"{max_bytes / GIB:.2f}: raise it, or {way_out}"
            )
        if recompute and asked is None:
            logger.info(
                "activations are computed again on the way back: %.2f GiB in place of %.2f",
                *(self.recomputed / GIB, self.activations / GIB),
            )
        return recompute
