"""Weights in the order in which the compiled kernels read them, packed one by one while they are loaded.

A matrix of `outputs` x `inputs` becomes panels of 32 outputs, each [pairs, 32, 2]: two neighbouring inputs of
32 outputs at a time. Outputs and inputs that are missing to whole panels are zeros. Gate and up share panels:
16 neurons' rows of the one beside the same neurons' rows of the other.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from server.engine.kernels.library import KernelLibrary, num_threads
from server.engine.weights import LayerReader, WeightReader, WeightSize

PANEL = 32  # outputs; kPanel of src/simd.h
_HUGE_PAGE = (2 << 20) // 2  # elements
_CHUNK = 64 * _HUGE_PAGE
LANES = 16  # neurons in a panel of gate and up, and what widths are padded to; kLanes


@dataclass(frozen=True)
class PackedLayer:
    """One decoder layer. Matrices are bfloat16 panels, norms and biases float32."""

    input_norm: torch.Tensor  # [hidden]
    qkv: torch.Tensor  # [panels, hidden / 2, 32, 2]
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None  # [head_dim]
    k_norm: torch.Tensor | None
    output: torch.Tensor  # [panels, heads head_dim / 2, 32, 2]
    output_bias: torch.Tensor | None
    mlp_norm: torch.Tensor  # [hidden]
    gate_up: torch.Tensor  # [neurons / 16, hidden / 2, 32, 2]
    down: torch.Tensor  # [panels, neurons / 2, 32, 2]
    neurons: int  # the width, padded to a multiple of 16


@dataclass(frozen=True)
class PackedWeights:
    """All of them. `embedding` is None where it is the head."""

    embedding: torch.Tensor | None  # [vocabulary, hidden], as in the checkpoint
    layers: tuple[PackedLayer, ...]
    norm: torch.Tensor  # [hidden]
    head: torch.Tensor  # [panels, hidden / 2, 32, 2]
    size: WeightSize


class PanelMemory:
    """Where panels lie: one after another in huge pages, since a step reads all of them from end to end.

    Comes in chunks of which only what is used takes memory, to the next whole page of 2 MiB.
    """

    def __init__(self, library: KernelLibrary) -> None:
        self.library = library
        self._chunk = torch.empty(0, dtype=torch.bfloat16)

    def take(self, panels: int, pairs: int) -> torch.Tensor:
        """[panels, pairs, 32, 2] of zeros."""
        count = panels * pairs * PANEL * 2
        if count > len(self._chunk):
            self._chunk = self._aligned(max(count, _CHUNK))
            self.library.advise_huge_pages(self._chunk.data_ptr(), self._chunk.nbytes)
        taken, self._chunk = self._chunk[:count], self._chunk[count:]
        return taken.zero_().view(panels, pairs, PANEL, 2)

    @staticmethod
    def _aligned(count: int) -> torch.Tensor:
        """`count` elements, to whole huge pages, that begin and end with a page; untouched."""
        count = _padded(count, _HUGE_PAGE)
        memory = torch.empty(count + _HUGE_PAGE, dtype=torch.bfloat16)
        start = -(memory.data_ptr() // 2) % _HUGE_PAGE
        return memory[start : start + count]


def pack_weights(library: KernelLibrary, reader: WeightReader) -> PackedWeights:
    """Reads and packs everything. No matrix is held twice but the one that is being packed.

    Raises:
        ModelError: a tensor or a file is missing or damaged.
    """
    embedding: torch.Tensor | None = reader.embedding()
    head = reader.head()
    if head is None:
        head, embedding = embedding, None
    assert head is not None
    memory = PanelMemory(library)
    packed_head = pack_matrix(memory, head)
    del head
    norm = reader.norm().float()
    layers = tuple(_pack_layer(memory, layer) for layer in reader.layers())
    tensors = [packed_head, norm, *([] if embedding is None else [embedding])]
    for weights in layers:
        tensors += [value for value in vars(weights).values() if isinstance(value, torch.Tensor)]
    size = reader.size(sum(tensor.nbytes for tensor in tensors))
    return PackedWeights(embedding, layers, norm, packed_head, size)


def pack_matrix(memory: PanelMemory, weight: torch.Tensor, pad_inputs_to: int = 2) -> torch.Tensor:
    """[outputs, inputs] bfloat16, of any strides → panels."""
    outputs, inputs = weight.shape
    pairs = _padded(inputs, pad_inputs_to) // 2
    panels = memory.take(-(-outputs // PANEL), pairs)
    _pack(memory.library, weight, PANEL, 0, panels)
    return panels


def pack_gate_up(
    memory: PanelMemory, gate: Callable[[], torch.Tensor], up: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """Two matrices of [neurons, hidden], read one after the other → panels of 16 neurons of both."""
    first = gate()
    neurons, hidden = first.shape
    panels = memory.take(-(-neurons // LANES), hidden // 2)
    _pack(memory.library, first, LANES, 0, panels)
    del first
    _pack(memory.library, up(), LANES, LANES, panels)
    return panels


def _pack_layer(memory: PanelMemory, layer: LayerReader) -> PackedLayer:
    return PackedLayer(
        input_norm=layer.input_norm().float(),
        qkv=pack_matrix(memory, layer.qkv()),
        qkv_bias=_float(layer.qkv_bias()),
        q_norm=_float(layer.q_norm()),
        k_norm=_float(layer.k_norm()),
        output=pack_matrix(memory, layer.output()),
        output_bias=_float(layer.output_bias()),
        mlp_norm=layer.mlp_norm().float(),
        gate_up=pack_gate_up(memory, layer.gate, layer.up),
        down=pack_matrix(memory, layer.down().T, pad_inputs_to=LANES),
        neurons=_padded(layer.width, LANES),
    )


def _pack(
    library: KernelLibrary, weight: torch.Tensor, lanes: int, first_lane: int, panels: torch.Tensor
) -> None:
    assert weight.dtype == torch.bfloat16
    library.pack(
        weight.data_ptr(),
        *weight.shape,
        *weight.stride(),
        lanes,
        first_lane,
        panels.shape[1],
        panels.data_ptr(),
        num_threads(),
    )


def _padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _float(vector: torch.Tensor | None) -> torch.Tensor | None:
    return None if vector is None else vector.float()
