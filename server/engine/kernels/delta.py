"""Deltas in the order in which the compiled kernels read them: packed like the matrices they are added to."""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from pruning.delta import Delta, LowRank, Projection
from server.engine.delta import merged_qkv, stacked
from server.engine.kernels.library import KernelLibrary, LayerDeltaStruct, LowRankStruct
from server.engine.kernels.packing import PANEL, PackedMatrix, PanelMemory, pack_gate_up, pack_matrix


@dataclass(frozen=True, eq=False)
class PackedDelta:
    """A `ServedDelta`. `structs` points into `tensors`.

    Attributes:
        rank_pairs: half of the largest padded rank.
    """

    digest: str
    num_parameters: int
    num_bytes: int
    rank_pairs: int
    structs: "ctypes.Array[LayerDeltaStruct]"
    tensors: tuple[torch.Tensor, ...] = field(repr=False)

    @property
    def address(self) -> int:
        """Of the first layer's struct."""
        return ctypes.addressof(self.structs)


def pack_delta(library: KernelLibrary, delta: Delta, qkv_rows: tuple[int, int, int]) -> PackedDelta:
    """`qkv_rows`: outputs of the query, key and value projections."""
    packer = _Packer(library)
    layers = [
        packer.layer(layer, width, qkv_rows)
        for layer, width in zip(delta.layers, delta.provenance.widths, strict=True)
    ]
    return PackedDelta(
        digest=delta.digest,
        num_parameters=delta.parameters,
        num_bytes=sum(tensor.nbytes for tensor in packer.tensors),
        rank_pairs=packer.rank_pairs,
        structs=(LayerDeltaStruct * len(layers))(*layers),
        tensors=tuple(packer.tensors),
    )


class _Packer:
    """Keeps what it has packed, for the structures only point to it."""

    def __init__(self, library: KernelLibrary) -> None:
        self.tensors: list[torch.Tensor] = []
        self.rank_pairs = 0
        self._memory = PanelMemory(library)

    def layer(
        self, layer: Mapping[Projection, LowRank], width: int, qkv_rows: tuple[int, int, int]
    ) -> LayerDeltaStruct:
        return LayerDeltaStruct(
            qkv=self._map(merged_qkv(layer, qkv_rows)),
            output=self._map(layer.get("o_proj")),
            gate_up=self._gate_up(layer.get("gate_proj"), layer.get("up_proj"), width),
            down=self._map(layer.get("down_proj")),
        )

    def _map(self, low_rank: LowRank | None) -> LowRankStruct:
        if low_rank is None:
            return LowRankStruct()
        a = pack_matrix(self._memory, low_rank.a.bfloat16())
        return self._struct(a, pack_matrix(self._memory, low_rank.b.bfloat16(), pad_inputs_to=PANEL))

    def _gate_up(self, gate: LowRank | None, up: LowRank | None, width: int) -> LowRankStruct:
        if gate is None and up is None:
            return LowRankStruct()
        both = stacked([gate, up], [width, width])
        b = both.b.bfloat16().new_zeros(2 * width, -(-both.rank // PANEL) * PANEL)  # padded as `a` is
        b[:, : both.rank] = both.b
        a = pack_matrix(self._memory, both.a.bfloat16())
        return self._struct(a, pack_gate_up(self._memory, lambda: b[:width], lambda: b[width:]))

    def _struct(self, a: PackedMatrix, b: PackedMatrix) -> LowRankStruct:
        self.tensors += [a.panels, b.panels]
        pairs = b.panels.shape[1]
        assert pairs == len(a.panels) * PANEL // 2, "both pad the rank to whole panels"
        self.rank_pairs = max(self.rank_pairs, pairs)
        return LowRankStruct(a=a.panels.data_ptr(), b=b.panels.data_ptr(), pairs=pairs)
