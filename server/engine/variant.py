"""One size of the model as the engine sees it: a width per layer, and what that costs. Immutable."""

import hashlib
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Variant:
    """The first `widths[l]` neurons of every layer `l`, in ranking order.

    Attributes:
        name: what a client calls it, e.g. ``math-mini:s20``.
        sparsity: the share of MLP neurons it was configured to leave out, 0 <= s < 1.
        exact_sparsity: the share that `widths` leaves out, after rounding, all layers together.
        widths: neurons kept, one number a layer.
        parameters: of the whole network at these widths.
        standalone_bytes: weights of a checkpoint that held this variant alone.
        marginal_bytes: weights held for this variant and no other.
    """

    name: str
    sparsity: float
    exact_sparsity: float
    widths: tuple[int, ...]
    parameters: int
    standalone_bytes: int
    marginal_bytes: int = 0

    @cached_property
    def kv_key(self) -> bytes:
        """Names the network that computed a KV block: equal for equal widths, whatever the name."""
        return hashlib.sha256(repr(self.widths).encode()).digest()
