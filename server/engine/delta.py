"""Deltas as the engine holds them, and which tokens of a batch each one belongs to.

The linear maps are those that the engine computes: queries, keys and values are one, all other projections
themselves. What a delta is stands in pruning/delta.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch.nn import functional as F

from pruning.delta import Delta, LowRank, Projection

LinearMap = Literal["qkv", "output", "gate", "up", "down"]


class ServedDelta(Protocol):
    """A delta in memory, made by the decoder that computes with it. Freed with the variant that holds it."""

    @property
    def digest(self) -> str:
        """Of the `Delta` that it was made from."""
        ...

    @property
    def num_bytes(self) -> int:
        """Memory that it holds, padding included."""
        ...

    @property
    def num_parameters(self) -> int:
        """Numbers, without padding."""
        ...


class DeltaRows(NamedTuple):
    """Tokens [start, stop) of a batch are of variants with this delta."""

    start: int
    stop: int
    delta: ServedDelta


class LowRankRows(NamedTuple):
    """What one delta adds to one linear map, and to which tokens."""

    start: int
    stop: int
    matrices: LowRank

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """B (A x) of these tokens of `x` [tokens, in]."""
        return F.linear(F.linear(x[self.start : self.stop], self.matrices.a), self.matrices.b)


@dataclass(frozen=True, eq=False)
class TorchDelta:
    """A `ServedDelta` as torch computes with it: per layer, low-rank matrices by linear map."""

    digest: str
    num_parameters: int
    layers: tuple[Mapping[LinearMap, LowRank], ...]

    @classmethod
    def of(cls, delta: Delta, qkv_rows: tuple[int, int, int], like: torch.Tensor) -> "TorchDelta":
        """`qkv_rows`: outputs of the query, key and value projections. `like`: has the device and dtype."""

        def maps(layer: Mapping[Projection, LowRank]) -> Mapping[LinearMap, LowRank]:
            found: dict[LinearMap, LowRank | None] = {
                "qkv": merged_qkv(layer, qkv_rows),
                "output": layer.get("o_proj"),
                "gate": layer.get("gate_proj"),
                "up": layer.get("up_proj"),
                "down": layer.get("down_proj"),
            }
            return {
                name: LowRank(low_rank.a.to(like), low_rank.b.to(like))
                for name, low_rank in found.items()
                if low_rank is not None
            }

        return cls(delta.digest, delta.parameters, tuple(maps(layer) for layer in delta.layers))

    @property
    def num_bytes(self) -> int:
        return sum(m.a.nbytes + m.b.nbytes for layer in self.layers for m in layer.values())


def rows_of_map(deltas: Sequence[DeltaRows], layer: int, name: LinearMap) -> list[LowRankRows]:
    """The tokens to which some delta adds something in this linear map."""
    found = []
    for start, stop, delta in deltas:
        assert isinstance(delta, TorchDelta), "it was made by this decoder"
        if name in delta.layers[layer]:
            found.append(LowRankRows(start, stop, delta.layers[layer][name]))
    return found


def add_low_rank(y: torch.Tensor, x: torch.Tensor, rows: Sequence[LowRankRows]) -> None:
    """y += B (A x) in place, for the tokens that `rows` names."""
    for added in rows:
        y[added.start : added.stop] += added.product(x)


def merged_qkv(layer: Mapping[Projection, LowRank], rows: tuple[int, int, int]) -> LowRank | None:
    """The low-rank matrices of queries, keys and values as those of the one map that computes all three."""
    parts = [layer.get("q_proj"), layer.get("k_proj"), layer.get("v_proj")]
    if all(part is None for part in parts):
        return None
    return stacked(parts, rows)


def stacked(parts: Sequence[LowRank | None], rows: Sequence[int]) -> LowRank:
    """[B_i A_i] one above the other, as one product: the A beneath each other, the B on a diagonal.

    Args:
        parts: not all None; a missing one adds nothing to its outputs.
        rows: outputs of each.
    """
    given = [part for part in parts if part is not None]
    b = torch.zeros(sum(rows), sum(part.rank for part in given), dtype=given[0].b.dtype)
    row = column = 0
    for part, outputs in zip(parts, rows, strict=True):
        if part is not None:
            b[row : row + outputs, column : column + part.rank] = part.b
            column += part.rank
        row += outputs
    return LowRank(torch.cat([part.a for part in given]), b)
