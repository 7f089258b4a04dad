"""Reads a checkpoint into the layout the engine computes with: neurons in ranking order, widest width only.

MLP matrices are read in slices of rows, and of each slice only the neurons that some variant serves are
kept, so neurons beyond the widest variant never take memory. `WeightReader` reads one matrix at a time, so
that whoever keeps the weights in a layout of their own (kernels/packing.py) never holds them twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tqdm import tqdm

from pruning.checkpoint import Checkpoint
from pruning.ranking import Ranking
from pruning.tensors import TensorReader

_ROWS_PER_SLICE = 1024  # of an MLP matrix: the memory that reading takes on top of what is kept
_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class WeightSize:
    """What the loaded weights amount to.

    Attributes:
        num_bytes: memory they hold, padding included, tied tensors once.
        num_parameters: numbers they hold, without padding.
        widths: neurons of each layer.
        hidden_size, itemsize: what one neuron costs.
    """

    num_bytes: int
    num_parameters: int
    widths: tuple[int, ...]
    hidden_size: int
    itemsize: int

    def parameters_at(self, widths: tuple[int, ...]) -> int:
        """Of the network cut to `widths`: a neuron is a row of gate, one of up and a column of down."""
        removed = sum(held - width for held, width in zip(self.widths, widths, strict=True))
        return self.num_parameters - 3 * removed * self.hidden_size


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer. q, k and v are one matrix; biases and per-head norms where the family has them."""

    input_norm: torch.Tensor  # [hidden]
    qkv: torch.Tensor  # [(heads + 2 kv_heads) head_dim, hidden]
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None  # [head_dim]
    k_norm: torch.Tensor | None
    output: torch.Tensor  # [hidden, heads head_dim]
    output_bias: torch.Tensor | None
    mlp_norm: torch.Tensor  # [hidden]
    gate: torch.Tensor  # [width, hidden], neurons in ranking order
    up: torch.Tensor  # [width, hidden]
    down: torch.Tensor  # [width, hidden], transposed


@dataclass(frozen=True)
class ModelWeights:
    """All of them. `head` is `embedding` itself where the two are tied."""

    embedding: torch.Tensor  # [vocabulary, hidden]
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor  # [hidden]
    head: torch.Tensor  # [vocabulary, hidden]
    size: WeightSize


class WeightReader:
    """The parts of a checkpoint that the widest variant keeps, each read when asked for.

    Args:
        widths: of layer `l`, the first `widths[l]` neurons in ranking order are read; all else is read whole.
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
        progress: bool,
    ) -> None:
        self.config = checkpoint.config
        self.architecture = checkpoint.architecture
        self._checkpoint = checkpoint
        self._ranking = ranking
        self._widths = widths
        self._device = device
        self._dtype = dtype
        self._progress = progress
        self._num_parameters = 0

    def embedding(self) -> torch.Tensor:
        """[vocabulary, hidden]."""
        with self._checkpoint.open_tensors() as tensors:
            return self.tensor(tensors, "model.embed_tokens.weight")

    def norm(self) -> torch.Tensor:
        """[hidden], the last one."""
        with self._checkpoint.open_tensors() as tensors:
            return self.tensor(tensors, "model.norm.weight")

    def head(self) -> torch.Tensor | None:
        """[vocabulary, hidden], or None where the head is the embedding."""
        if not has_own_head(self._checkpoint):
            return None
        with self._checkpoint.open_tensors() as tensors:
            return self.tensor(tensors, _HEAD)

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
        return WeightSize(
            num_bytes, self._num_parameters, self._widths, self.config.hidden_size, self._dtype.itemsize
        )

    def tensor(self, tensors: TensorReader, name: str) -> torch.Tensor:
        """A whole one of an open checkpoint, by its name there."""
        # A copy even where nothing changes: what stays must not be a view of the mapped file.
        tensor = tensors.get(name).to(self._device, self._dtype, copy=True)
        self._num_parameters += tensor.numel()
        return tensor

    def neuron_rows(self, tensors: TensorReader, name: str, index: int) -> torch.Tensor:
        """[neurons, hidden] in the file → its first neurons in ranking order."""
        width, permutation = self._widths[index], self._ranking.permutation[index]
        num_neurons, hidden = tensors.shape(name)
        rank_of = torch.empty(num_neurons, dtype=torch.long)
        rank_of[permutation] = torch.arange(num_neurons)
        kept = torch.empty(width, hidden, device=self._device, dtype=self._dtype)
        for start in range(0, num_neurons, _ROWS_PER_SLICE):
            rows = tensors.rows(name, start, min(start + _ROWS_PER_SLICE, num_neurons))
            ranks = rank_of[start : start + len(rows)]
            served = ranks < width
            kept[ranks[served].to(self._device)] = rows[served].to(self._device, self._dtype)
        self._num_parameters += kept.numel()
        return kept

    def neuron_columns(self, tensors: TensorReader, name: str, index: int) -> torch.Tensor:
        """[hidden, neurons] in the file → its first neurons in ranking order, as rows."""
        width, permutation = self._widths[index], self._ranking.permutation[index]
        hidden, _ = tensors.shape(name)
        kept = torch.empty(width, hidden, device=self._device, dtype=self._dtype)
        for start in range(0, hidden, _ROWS_PER_SLICE):
            stop = min(start + _ROWS_PER_SLICE, hidden)
            columns = tensors.rows(name, start, stop)[:, permutation[:width]]
            kept[:, start:stop] = columns.to(self._device, self._dtype).T
        self._num_parameters += kept.numel()
        return kept


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

    def qkv(self) -> torch.Tensor:
        return torch.cat([self._tensor(f"self_attn.{p}_proj.weight") for p in "qkv"])

    def qkv_bias(self) -> torch.Tensor | None:
        biases = [self._optional(f"self_attn.{p}_proj.bias") for p in "qkv"]
        kept = [bias for bias in biases if bias is not None]
        return torch.cat(kept) if kept else None

    def q_norm(self) -> torch.Tensor | None:
        return self._optional("self_attn.q_norm.weight")

    def k_norm(self) -> torch.Tensor | None:
        return self._optional("self_attn.k_norm.weight")

    def output(self) -> torch.Tensor:
        return self._tensor("self_attn.o_proj.weight")

    def output_bias(self) -> torch.Tensor | None:
        return self._optional("self_attn.o_proj.bias")

    def mlp_norm(self) -> torch.Tensor:
        return self._tensor("post_attention_layernorm.weight")

    def gate(self) -> torch.Tensor:
        return self._reader.neuron_rows(self._tensors, self._mlp_names[0], self._index)

    def up(self) -> torch.Tensor:
        return self._reader.neuron_rows(self._tensors, self._mlp_names[1], self._index)

    def down(self) -> torch.Tensor:
        return self._reader.neuron_columns(self._tensors, self._mlp_names[2], self._index)

    @property
    def _mlp_names(self) -> tuple[str, str, str]:
        return self._reader.architecture.mlp_weight_names(self._index)

    def _tensor(self, name: str) -> torch.Tensor:
        return self._reader.tensor(self._tensors, f"{self._prefix}.{name}")

    def _optional(self, name: str) -> torch.Tensor | None:
        return self._tensor(name) if f"{self._prefix}.{name}" in self._tensors.names else None


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
