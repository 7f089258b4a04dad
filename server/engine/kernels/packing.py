"""Weights in the order in which the compiled kernels read them, packed one by one while they are loaded.

A matrix of `outputs` x `inputs` becomes panels of 32 outputs, each [words, 32]: a word is two neighbouring
inputs in bfloat16, or four in 8 bits. Outputs and inputs that are missing to whole panels are zeros. Gate and
up share panels: 16 neurons' rows of the one beside the same neurons' rows of the other.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from server.engine.kernels.library import KernelLibrary, num_threads
from server.engine.kernels.memory import HUGE_PAGE, system_zeros
from server.engine.quantization import QuantizedMatrix, Weight
from server.engine.weights import LayerReader, WeightReader, WeightSize

PANEL = 32  # outputs; kPanel of src/simd.h
_CHUNK = 64 << 20  # elements
LANES = 16  # neurons in a panel of gate and up, and what widths are padded to; kLanes


@dataclass(frozen=True)
class PackedMatrix:
    """Of bfloat16, or of integers with 128 added and scales, as many as whole panels have outputs."""

    panels: torch.Tensor  # [panels, words, 32, 2] bfloat16 or [panels, words, 32, 4] uint8
    scales: torch.Tensor | None  # [panels 32] float32

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes + (0 if self.scales is None else self.scales.nbytes)


@dataclass(frozen=True)
class PackedLayer:
    """One decoder layer. Norms and biases are float32."""

    input_norm: torch.Tensor  # [hidden]
    qkv: PackedMatrix
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None  # [head_dim]
    k_norm: torch.Tensor | None
    output: PackedMatrix
    output_bias: torch.Tensor | None
    mlp_norm: torch.Tensor  # [hidden]
    gate_up: PackedMatrix  # panels of 16 neurons
    down: PackedMatrix
    neurons: int  # the width, padded to a multiple of 16


@dataclass(frozen=True)
class PackedWeights:
    """All of them. `embedding` is None where it is the head."""

    embedding: Weight | None  # [vocabulary, hidden], not packed
    layers: tuple[PackedLayer, ...]
    norm: torch.Tensor  # [hidden]
    head: PackedMatrix
    size: WeightSize


class PanelMemory:
    """Where panels lie: one after another in huge pages, since a step reads all of them from end to end.

    Comes in chunks of which only what is used takes memory, to the next whole page of 2 MiB.
    """

    def __init__(self, library: KernelLibrary) -> None:
        self.library = library
        self._chunk = torch.empty(0, dtype=torch.bfloat16)

    def take(self, panels: int, words: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """[panels, words, 32, numbers in a word] of zeros."""
        count = panels * words * PANEL * 2
        if count > len(self._chunk):
            self._chunk = system_zeros(max(_padded(count, HUGE_PAGE // 2), _CHUNK))
        taken, self._chunk = self._chunk[:count], self._chunk[count:]
        return taken.view(dtype).view(panels, words, PANEL, -1)


def pack_weights(library: KernelLibrary, reader: WeightReader) -> PackedWeights:
    """Reads and packs everything. No matrix is held twice but the one that is being packed.

    Raises:
        ModelError: a tensor or a file is missing or damaged.
    """
    embedding: Weight | None = reader.embedding()
    head = reader.head()
    if head is None:
        head, embedding = embedding, None
    assert head is not None
    memory = PanelMemory(library)
    packed_head = pack_matrix(memory, head)
    del head
    norm = reader.norm().float()
    layers = tuple(_pack_layer(memory, layer) for layer in reader.layers())
    parts: list[Weight | PackedMatrix] = [packed_head, norm]
    if embedding is not None:
        parts.append(embedding)
    for weights in layers:
        parts += [value for value in vars(weights).values() if isinstance(value, torch.Tensor | PackedMatrix)]
    size = reader.size(sum(part.nbytes for part in parts))
    return PackedWeights(embedding, layers, norm, packed_head, size)


def pack_matrix(memory: PanelMemory, weight: Weight, pad_inputs_to: int = LANES) -> PackedMatrix:
    """[outputs, inputs] in bfloat16 or quantized, of any strides → panels."""
    numbers = _numbers(weight)
    outputs, inputs = numbers.shape
    words = _words(_padded(inputs, pad_inputs_to), numbers)
    panels = memory.take(-(-outputs // PANEL), words, numbers.dtype)
    _pack(memory.library, numbers, PANEL, 0, panels)
    if isinstance(weight, torch.Tensor):
        return PackedMatrix(panels, None)
    return PackedMatrix(panels, _padded_scales(weight, len(panels) * PANEL))


def pack_gate_up(memory: PanelMemory, gate: Callable[[], Weight], up: Callable[[], Weight]) -> PackedMatrix:
    """Two matrices of [neurons, hidden], read one after the other → panels of 16 neurons of both."""
    panels = None
    scales: list[torch.Tensor] = []  # [panels, 16] of gate and of up
    for lane, read in ((0, gate), (LANES, up)):
        weight = read()
        numbers = _numbers(weight)
        neurons, hidden = numbers.shape
        if panels is None:
            panels = memory.take(-(-neurons // LANES), _words(hidden, numbers), numbers.dtype)
        _pack(memory.library, numbers, LANES, lane, panels)
        if isinstance(weight, QuantizedMatrix):
            scales.append(_padded_scales(weight, len(panels) * LANES).view(-1, LANES))
        del weight, numbers
    assert panels is not None
    return PackedMatrix(panels, torch.cat(scales, dim=1).flatten() if scales else None)


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
        down=pack_matrix(memory, layer.down()),
        neurons=_padded(layer.width, LANES),
    )


def _numbers(weight: Weight) -> torch.Tensor:
    """What panels hold of a matrix: bfloat16, or integers plus 128, unsigned as instructions want them."""
    if isinstance(weight, QuantizedMatrix):
        return weight.values.view(torch.uint8) ^ 128
    assert weight.dtype == torch.bfloat16
    return weight


def _words(inputs: int, numbers: torch.Tensor) -> int:
    """What so many inputs take."""
    return inputs * numbers.itemsize // 4


def _padded_scales(weight: QuantizedMatrix, count: int) -> torch.Tensor:
    return F.pad(weight.scales, (0, count - len(weight.scales)))


def _pack(
    library: KernelLibrary, numbers: torch.Tensor, lanes: int, first_lane: int, panels: torch.Tensor
) -> None:
    library.pack(
        numbers.data_ptr(),
        numbers.itemsize,
        *numbers.shape,
        *numbers.stride(),
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
