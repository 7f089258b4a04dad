"""Reads a checkpoint into the layout the engine computes with: neurons in ranking order, widest width only.

MLP matrices are read in slices of rows, and of each slice only the neurons that some variant serves are
kept, so neurons beyond the widest variant never take memory.
"""

from dataclasses import dataclass

import torch
from tqdm import tqdm

from pruning.checkpoint import Checkpoint
from pruning.ranking import Ranking
from pruning.tensors import TensorReader

_ROWS_PER_SLICE = 1024  # of an MLP matrix: the memory that reading takes on top of what is kept


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

    @property
    def num_bytes(self) -> int:
        """Memory they hold, tied tensors once."""
        tensors = {id(t): t for t in (self.embedding, self.norm, self.head)}
        for layer in self.layers:
            tensors.update((id(t), t) for t in vars(layer).values() if t is not None)
        return sum(t.nbytes for t in tensors.values())


def load_weights(
    checkpoint: Checkpoint,
    ranking: Ranking,
    widths: tuple[int, ...],
    *,
    device: torch.device,
    dtype: torch.dtype,
    progress: bool,
) -> ModelWeights:
    """Reads the first `widths[l]` neurons of each layer `l` in ranking order, and everything else whole.

    Raises:
        ModelError: a tensor or a file is missing or damaged.
    """
    reading = _Reading(checkpoint, device, dtype)
    with checkpoint.open_tensors() as tensors:
        embedding = reading.tensor(tensors, "model.embed_tokens.weight")
        norm = reading.tensor(tensors, "model.norm.weight")
        tied = checkpoint.config.tie_word_embeddings or "lm_head.weight" not in tensors.names
        head = embedding if tied else reading.tensor(tensors, "lm_head.weight")
    layers = []
    bar = tqdm(total=len(widths), desc="Loading weights", unit="layer", disable=not progress, leave=False)
    with bar:
        for index, width in enumerate(widths):
            # Opened layer by layer: pages of a mapped file count as resident until it is closed.
            with checkpoint.open_tensors() as tensors:
                layers.append(reading.layer(tensors, index, ranking.permutation[index], width))
            bar.update()
    return ModelWeights(embedding, tuple(layers), norm, head)


class _Reading:
    """One checkpoint on its way to one device and dtype."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self._architecture = checkpoint.architecture
        self._device = device
        self._dtype = dtype

    def tensor(self, tensors: TensorReader, name: str) -> torch.Tensor:
        # A copy even where nothing changes: what stays must not be a view of the mapped file.
        return tensors.get(name).to(self._device, self._dtype, copy=True)

    def optional(self, tensors: TensorReader, name: str) -> torch.Tensor | None:
        return self.tensor(tensors, name) if name in tensors.names else None

    def layer(self, tensors: TensorReader, index: int, permutation: torch.Tensor, width: int) -> LayerWeights:
        prefix = f"model.layers.{index}"
        attention = f"{prefix}.self_attn"
        qkv = [self.tensor(tensors, f"{attention}.{p}_proj.weight") for p in "qkv"]
        biases = [self.optional(tensors, f"{attention}.{p}_proj.bias") for p in "qkv"]
        kept_biases = [bias for bias in biases if bias is not None]
        gate, up, down = self._architecture.mlp_weight_names(index)
        return LayerWeights(
            input_norm=self.tensor(tensors, f"{prefix}.input_layernorm.weight"),
            qkv=torch.cat(qkv),
            qkv_bias=torch.cat(kept_biases) if kept_biases else None,
            q_norm=self.optional(tensors, f"{attention}.q_norm.weight"),
            k_norm=self.optional(tensors, f"{attention}.k_norm.weight"),
            output=self.tensor(tensors, f"{attention}.o_proj.weight"),
            output_bias=self.optional(tensors, f"{attention}.o_proj.bias"),
            mlp_norm=self.tensor(tensors, f"{prefix}.post_attention_layernorm.weight"),
            gate=self._neuron_rows(tensors, gate, permutation, width),
            up=self._neuron_rows(tensors, up, permutation, width),
            down=self._neuron_columns(tensors, down, permutation, width),
        )

    def _neuron_rows(
        self, tensors: TensorReader, name: str, permutation: torch.Tensor, width: int
    ) -> torch.Tensor:
        """[neurons, hidden] in the file → its first `width` rows in ranking order."""
        num_neurons, hidden = tensors.shape(name)
        rank_of = torch.empty(num_neurons, dtype=torch.long)
        rank_of[permutation] = torch.arange(num_neurons)
        kept = torch.empty(width, hidden, device=self._device, dtype=self._dtype)
        for start in range(0, num_neurons, _ROWS_PER_SLICE):
            rows = tensors.rows(name, start, min(start + _ROWS_PER_SLICE, num_neurons))
            ranks = rank_of[start : start + len(rows)]
            served = ranks < width
            kept[ranks[served].to(self._device)] = rows[served].to(self._device, self._dtype)
        return kept

    def _neuron_columns(
        self, tensors: TensorReader, name: str, permutation: torch.Tensor, width: int
    ) -> torch.Tensor:
        """[hidden, neurons] in the file → its first `width` columns in ranking order, as rows."""
        hidden, _ = tensors.shape(name)
        kept = torch.empty(width, hidden, device=self._device, dtype=self._dtype)
        for start in range(0, hidden, _ROWS_PER_SLICE):
            stop = min(start + _ROWS_PER_SLICE, hidden)
            columns = tensors.rows(name, start, stop)[:, permutation[:width]]
            kept[:, start:stop] = columns.to(self._device, self._dtype).T
        return kept
