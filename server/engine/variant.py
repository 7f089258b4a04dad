"""One size of the model as the engine sees it: a width per layer, maybe a delta, and what both cost."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the scheduler knows variants, and imports no torch
    from server.engine.delta import ServedDelta


@dataclass(frozen=True)
class Variant:
    """The first `widths[l]` neurons of every layer `l`, in ranking order, and what a delta adds to them.

    Attributes:
        name: what a client calls it, e.g. ``math-mini:s20``.
        sparsity: the share of MLP neurons it was configured to leave out, 0 <= s < 1.
        exact_sparsity: the share that `widths` leaves out, after rounding, all layers together.
        widths: neurons kept, one number a layer.
        parameters: of the whole network at these widths, the delta's among them.
        standalone_bytes: weights of a checkpoint that held this variant alone.
        marginal_bytes: weights held for this variant and no other: its delta.
        delta: low-rank matrices of its own; None for a plain prefix.
    """

    name: str
    sparsity: float
    exact_sparsity: float
    widths: tuple[int, ...]
    parameters: int
    standalone_bytes: int
    marginal_bytes: int = 0
    delta: "ServedDelta | None" = None

    @cached_property
    def kv_key(self) -> bytes:
        """Names the network that computed a KV block, by widths and delta, whatever it is called."""
        return hashlib.sha256(f"{self.widths} {self.delta_digest}".encode()).digest()

    @property
    def delta_digest(self) -> str:
        """ "" without a delta."""
        return "" if self.delta is None else self.delta.digest
