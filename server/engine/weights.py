"""Reads a checkpoint into the layout the engine computes with: neurons in ranking order, widest width only.

MLP matrices are read in slices of rows, and of each slice only the neurons that some variant serves are
kept, so neurons beyond the widest variant never take memory. `WeightReader` reads one matrix at a time, so
that whoever keeps the weights in a layout of their own (kernels/packing.py) never holds them twice. Where the
matrices are wanted in 8 bits (quantization.py) they are rounded slice by slice, as they come.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from tqdm import tqdm

from pruning.checkpoints.checkpoint import Checkpoint
from pruning.checkpoints.tensors import TensorReader
from pruning.ranking.ranking import Ranking
from server.engine.quantization import QuantizedMatrix, Weight, quantize

_ROWS_PER_SLICE = 1024  # of a matrix: the memory that reading takes on top of what is kept
_HEAD = "lm_head.weight"

_Counted = TypeVar("_Counted", torch.Tensor, QuantizedMatrix, Weight)


@dataclass(frozen=True)
class WeightSize:
    """What the loaded weights amount to.

    Attributes:
        num_bytes: memory they hold, padding included, tied tensors once.
        num_parameters: numbers they hold, without padding and scales.
        parameter_bytes: what these and their scales take.
        embedding_bytes: those of the embedding among them, whether or not it is the head as well.
        widths: neurons of each layer.
        neuron_parameters, neuron_bytes: of one: a row of gate, one of up and a column of down.
    """

    num_bytes: int
    num_parameters: int
    parameter_bytes: int
    embedding_bytes: int
    widths: tuple[int, ...]
    neuron_parameters: int
    neuron_bytes: int

    def parameters_at(self, widths: tuple[int, ...]) -> int:
        """Of the network cut to `widths`."""
        return self.num_parameters - self._removed(widths) * self.neuron_parameters

    def bytes_at(self, widths: tuple[int, ...]) -> int:
        """The same in bytes."""
        return self.parameter_bytes - self._removed(widths) * self.neuron_bytes

    def _removed(self, widths: tuple[int, ...]) -> int:
        return sum(held - width for held, width in zip(self.widths, widths, strict=True))


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer. q, k and v are one matrix; biases and per-head norms where the family has them."""

    input_norm: torch.Tensor  # [hidden]
    qkv: Weight  # [(heads + 2 kv_heads) head_dim, hidden]
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None  # [head_dim]
    k_norm: torch.Tensor | None
    output: Weight  # [hidden, heads head_dim]
    output_bias: torch.Tensor | None
    mlp_norm: torch.Tensor  # [hidden]
    gate: Weight  # [width, hidden], neurons in ranking order
    up: Weight  # [width, hidden]
    down: Weight  # [hidden, width], neuron by neuron


@dataclass(frozen=True)
class ModelWeights:
    """All of them. `head` is `embedding` itself where the two are tied."""

    embedding: Weight  # [vocabulary, hidden]
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor  # [hidden]
    head: Weight  # [vocabulary, hidden]
    size: WeightSize


class WeightReader:
    """The parts of a checkpoint that the widest variant keeps, each read when asked for.

    Args:
        widths: of layer `l`, the first `widths[l]` neurons in ranking order are read; all else is read whole.
        quantized: whether matrices are rounded to 8 bits.
        progress: whether `layers` shows a bar.

    Every method raises ModelError where a tensor or a file is missing or damaged.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        ranking: Ranking,
        widths: tuple[int, ...],
        *,
        device: torch.device,
        dtype: torch.dtype,
        quantized: bool,
        progress: bool,
    ) -> None:
        self.config = checkpoint.config
        self.architecture = checkpoint.architecture
        self._checkpoint = checkpoint
        self._ranking = ranking
        self._widths = widths
        self._device = device
        self._dtype = dtype
        self._quantized = quantized
        self._progress = progress
        self._num_parameters = 0
        self._parameter_bytes = 0
        self._embedding_bytes = 0

    def embedding(self) -> Weight:
        """[vocabulary, hidden]."""
        with self._checkpoint.open_tensors() as tensors:
            embedding = self.matrix(tensors, "model.embed_tokens.weight")
        self._embedding_bytes = embedding.nbytes
        return embedding

    def norm(self) -> torch.Tensor:
        """[hidden], the last one."""
        with self._checkpoint.open_tensors() as tensors:
            return self.tensor(tensors, "model.norm.weight")

    def head(self) -> Weight | None:
        """[vocabulary, hidden], or None where the head is the embedding."""
        if not has_own_head(self._checkpoint):
            return None
        with self._checkpoint.open_tensors() as tensors:
            return self.matrix(tensors, _HEAD)

    def layers(self) -> Iterator["LayerReader"]:
        """One after the other; each may be read from until the next is asked for."""
        bar = tqdm(
            self._widths, desc="Loading weights", unit="layer", disable=not self._progress, leave=False
        )
        with bar:
            for index, width in enumerate(bar):
                # Opened layer by layer: pages of a mapped file count as resident until it is closed.
                with self._checkpoint.open_tensors() as tensors:
                    yield LayerReader(self, tensors, index, width)

    def size(self, num_bytes: int) -> WeightSize:
        """Of what has been read, now held in `num_bytes`."""
        neuron_parameters = 3 * self.config.hidden_size
        neuron_bytes = neuron_parameters * self._dtype.itemsize
        if self._quantized:
            neuron_bytes = neuron_parameters + 2 * torch.float32.itemsize  # scales of gate and up
        return WeightSize(
            num_bytes,
            self._num_parameters,
            self._parameter_bytes,
            self._embedding_bytes,
            self._widths,
            neuron_parameters,
            neuron_bytes,
        )

    def tensor(self, tensors: TensorReader, name: str) -> torch.Tensor:
        """A whole one of an open checkpoint, by its name there."""
        # A copy even where nothing changes: what stays must not be a view of the mapped file.
        return self._counted(tensors.get(name).to(self._device, self._dtype, copy=True))

    def matrix(self, tensors: TensorReader, *names: str) -> Weight:
        """Whole ones of an open checkpoint, one above the other."""
        if not self._quantized:
            parts = [self.tensor(tensors, name) for name in names]
            return torch.cat(parts) if len(parts) > 1 else parts[0]
        slices = [
            quantize(tensors.rows(name, start, stop).to(self._device, self._dtype))
            for name in names
            for start, stop in _slices(tensors.shape(name)[0])
        ]
        return self._counted(
            QuantizedMatrix(torch.cat([s.values for s in slices]), torch.cat([s.scales for s in slices]))
        )

    def neuron_rows(self, tensors: TensorReader, name: str, index: int) -> Weight:
        """[neurons, hidden] in the file → its first neurons in ranking order."""
        width, permutation = self._widths[index], self._ranking.permutation[index]
        num_neurons, hidden = tensors.shape(name)
        rank_of = torch.empty(num_neurons, dtype=torch.long)
        rank_of[permutation] = torch.arange(num_neurons)
        kept, scales = self._empty(width, hidden), self._empty_scales(width)
        for start, stop in _slices(num_neurons):
            rows = tensors.rows(name, start, stop)
            ranks = rank_of[start:stop]
            served = ranks < width
            rows, ranks = rows[served].to(self._device, self._dtype), ranks[served].to(self._device)
            if self._quantized:
                quantized = quantize(rows)
                rows, scales[ranks] = quantized.values, quantized.scales
            kept[ranks] = rows
        return self._counted(QuantizedMatrix(kept, scales) if self._quantized else kept)

    def neuron_columns(self, tensors: TensorReader, name: str, index: int) -> Weight:
        """[hidden, neurons] in the file → its first neurons in ranking order, lying one after the other."""
        width, permutation = self._widths[index], self._ranking.permutation[index]
        hidden, _ = tensors.shape(name)
        kept, scales = self._empty(width, hidden), self._empty_scales(hidden)
        for start, stop in _slices(hidden):
            rows = tensors.rows(name, start, stop)
            # Torch gathers from the transpose three times as fast as columns.
            columns = rows.T[permutation[:width]].T.to(self._device, self._dtype)
            if self._quantized:
                quantized = quantize(columns, peaks=rows.abs().amax(1).to(self._device, self._dtype))
                columns, scales[start:stop] = quantized.values, quantized.scales
            kept[:, start:stop] = columns.T
        return self._counted(QuantizedMatrix(kept.T, scales) if self._quantized else kept.T)

    def _empty(self, rows: int, columns: int) -> torch.Tensor:
        dtype = torch.int8 if self._quantized else self._dtype
        return torch.empty(rows, columns, device=self._device, dtype=dtype)

    def _empty_scales(self, count: int) -> torch.Tensor:
        return torch.empty(count, device=self._device, dtype=torch.float32)

    def _counted(self, weight: "_Counted") -> "_Counted":
        """`weight`, now part of what has been read."""
        numbers = weight if isinstance(weight, torch.Tensor) else weight.values
        self._num_parameters += numbers.numel()
        self._parameter_bytes += weight.nbytes
        return weight


class LayerReader:
    """One layer's tensors; shapes as in LayerWeights."""

    def __init__(self, reader: WeightReader, tensors: TensorReader, index: int, width: int) -> None:
        self.width = width
        self._reader = reader
        self._tensors = tensors
        self._index = index
        self._prefix = f"model.layers.{index}"

    def input_norm(self) -> torch.Tensor:
        return self._tensor("input_layernorm.weight")

    def qkv(self) -> Weight:
        return self._matrix(*(f"self_attn.{p}_proj.weight" for p in "qkv"))

    def qkv_bias(self) -> torch.Tensor | None:
        biases = [self._optional(f"self_attn.{p}_proj.bias") for p in "qkv"]
        kept = [bias for bias in biases if bias is not None]
        return torch.cat(kept) if kept else None

    def q_norm(self) -> torch.Tensor | None:
        return self._optional("self_attn.q_norm.weight")

    def k_norm(self) -> torch.Tensor | None:
        return self._optional("self_attn.k_norm.weight")

    def output(self) -> Weight:
        return self._matrix("self_attn.o_proj.weight")

    def output_bias(self) -> torch.Tensor | None:
        return self._optional("self_attn.o_proj.bias")

    def mlp_norm(self) -> torch.Tensor:
        return self._tensor("post_attention_layernorm.weight")

    def gate(self) -> Weight:
        return self._reader.neuron_rows(self._tensors, self._mlp_names[0], self._index)

    def up(self) -> Weight:
        return self._reader.neuron_rows(self._tensors, self._mlp_names[1], self._index)

    def down(self) -> Weight:
        return self._reader.neuron_columns(self._tensors, self._mlp_names[2], self._index)

    @property
    def _mlp_names(self) -> tuple[str, str, str]:
        return self._reader.architecture.mlp_weight_names(self._index)

    def _matrix(self, *names: str) -> Weight:
        return self._reader.matrix(self._tensors, *(f"{self._prefix}.{name}" for name in names))

    def _tensor(self, name: str) -> torch.Tensor:
        return self._reader.tensor(self._tensors, f"{self._prefix}.{name}")

    def _optional(self, name: str) -> torch.Tensor | None:
        return self._tensor(name) if f"{self._prefix}.{name}" in self._tensors.names else None


def _slices(num_rows: int) -> Iterator[tuple[int, int]]:
    """Where slices of so many rows begin and end."""
    for start in range(0, num_rows, _ROWS_PER_SLICE):
        yield start, min(start + _ROWS_PER_SLICE, num_rows)


def has_own_head(checkpoint: Checkpoint) -> bool:
    """Whether the head is a matrix of its own, not the embedding once more."""
    if checkpoint.config.tie_word_embeddings:
        return False
    with checkpoint.open_tensors() as tensors:
        return _HEAD in tensors.names


def load_weights(reader: WeightReader) -> ModelWeights:
    """Everything, as torch computes with it.

    Raises:
        ModelError: a tensor or a file is missing or damaged.
    """
    embedding = reader.embedding()
    head = reader.head()
    if head is None:
        head = embedding
    norm = reader.norm()
    layers = tuple(
        LayerWeights(
            input_norm=layer.input_norm(),
            qkv=layer.qkv(),
            qkv_bias=layer.qkv_bias(),
            q_norm=layer.q_norm(),
            k_norm=layer.k_norm(),
            output=layer.output(),
            output_bias=layer.output_bias(),
            mlp_norm=layer.mlp_norm(),
            gate=layer.gate(),
            up=layer.up(),
            down=layer.down(),
        )
        for layer in reader.layers()
    )
    tensors = {id(t): t for t in (embedding, norm, head)}
    for weights in layers:
        tensors.update((id(t), t) for t in vars(weights).values() if t is not None)
    return ModelWeights(
        embedding, layers, norm, head, reader.size(sum(tensor.nbytes for tensor in tensors.values()))
    )
