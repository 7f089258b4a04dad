"""The decoder of the Llama family: embedding, attention, nested MLP, head. Tensors in, logits out.

One implementation serves Llama, Qwen2, Qwen3 and Mistral; they differ in biases, in norms on the heads of
queries and keys, and in attention windows. Arithmetic follows transformers step by step (norms in float32,
rotary embedding in the model's dtype), because served logits are compared with its.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pruning.checkpoints.architectures import architecture_of
from pruning.delta import Delta
from server.engine.attention import AttentionPlan, PagedKV
from server.engine.batch import Batch
from server.engine.delta import DeltaRows, ServedDelta, TorchDelta, add_low_rank, rows_of_map
from server.engine.nested_mlp import MLPDeltas, NestedMLP, NeuronBlock
from server.engine.quantization import linear, rows_of
from server.engine.weights import LayerWeights, ModelWeights


@dataclass(frozen=True)
class ModelGeometry:
    """The numbers that attention is shaped by."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    windows: tuple[int | None, ...]  # per layer: tokens a token sees, itself included; None for all

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> "ModelGeometry":
        architecture = architecture_of(config)
        window = getattr(config, "sliding_window", None)
        if not getattr(config, "use_sliding_window", True):
            window = None
        # Where a config does not say which layers slide, all of them do (Mistral).
        kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
        return cls(
            num_layers=architecture.num_layers,
            num_heads=architecture.num_heads,
            num_kv_heads=architecture.num_kv_heads,
            head_dim=architecture.head_dim,
            norm_eps=config.rms_norm_eps,
            windows=tuple(window if kind == "sliding_attention" else None for kind in kinds),
        )

    @property
    def qkv_rows(self) -> tuple[int, int, int]:
        """Outputs of the query, key and value projections."""
        keys = self.num_kv_heads * self.head_dim
        return self.num_heads * self.head_dim, keys, keys


class Decoder(Protocol):
    """A loaded network and the keys and values of all requests."""

    @property
    def kv_bytes(self) -> int:
        """Memory of keys and values, all layers."""
        ...

    def load_delta(self, delta: Delta) -> ServedDelta:
        """A delta of a variant of this model, ready to compute with. Safe on any thread."""
        ...

    def forward(self, batch: Batch) -> torch.Tensor:
        """What the layers make of `batch.output_rows`, [rows, hidden]; keeps the batch's keys and values."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, vocabulary] in float32, of rows that `forward` gave; good until the next call."""
        ...

    def likeliest(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows] the token of the largest logit, the lowest id on a tie, of rows that `forward` gave."""
        ...


class TorchDecoder:
    """What decoders that compute with torch's tensors hold: weights, keys and values, rotary tables.

    Args:
        max_model_len: the longest context, in tokens.
        num_blocks, block_size: KV blocks, and the tokens in each.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        weights: ModelWeights,
        max_model_len: int,
        num_blocks: int,
        block_size: int,
    ) -> None:
        self._geometry = geometry = ModelGeometry.from_config(config)
        self._weights = weights
        device, dtype = weights.norm.device, weights.norm.dtype
        self._kv = [
            PagedKV(num_blocks, block_size, geometry.num_kv_heads, geometry.head_dim, device, dtype)
            for _ in weights.layers
        ]
        self._rotary = rotary_tables(config, max_model_len, weights.norm)

    @property
    def kv_bytes(self) -> int:
        """Memory of keys and values, all layers."""
        return sum(kv.keys.nbytes + kv.values.nbytes for kv in self._kv)

    def load_delta(self, delta: Delta) -> ServedDelta:
        """A delta of a variant of this model, ready to compute with. Safe on any thread."""
        return TorchDelta.of(delta, self._geometry.qkv_rows, self._weights.norm)

    def _tensor(self, rows: Sequence[int]) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.long, device=self._weights.norm.device)


class DecoderModel(TorchDecoder):
    """The decoder as torch computes it, on any device and in any dtype. Args as above."""

    def __init__(
        self,
        config: PretrainedConfig,
        weights: ModelWeights,
        max_model_len: int,
        num_blocks: int,
        block_size: int,
    ) -> None:
        super().__init__(config, weights, max_model_len, num_blocks, block_size)
        activation = _activation(config.hidden_act)
        self._layers = [
            _DecoderLayer(index, layer, self._geometry, window, activation)
            for index, (layer, window) in enumerate(zip(weights.layers, self._geometry.windows, strict=True))
        ]

    def forward(self, batch: Batch) -> torch.Tensor:
        """What the layers make of `batch.output_rows`, [rows, hidden]; keeps the batch's keys and values."""
        weights = self._weights
        like = weights.norm
        hidden = rows_of(weights.embedding, batch.token_ids.to(like.device)).to(
            like.dtype
        )  # [tokens, hidden]
        step = self._step(batch)
        *layers, last = zip(self._layers, self._kv, batch.neuron_blocks, strict=True)
        for layer, kv, blocks in layers:
            hidden = layer.attend(hidden, layer.queries(hidden, step, kv), step, kv)
            hidden = layer.feed_forward(hidden, step, blocks)
        layer, kv, blocks = last
        queries = layer.queries(hidden, step, kv)
        if not batch.wants_all:
            kept = self._tensor(batch.output_rows)
            hidden, queries = hidden[kept], queries[kept]
            if not batch.output_rows:
                return hidden
            outputs = batch.outputs()
            step, [blocks] = self._step(outputs), outputs.neuron_blocks
        return layer.feed_forward(layer.attend(hidden, queries, step, kv), step, blocks)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, vocabulary] in float32, of rows that `forward` gave."""
        normed = _rms_norm(hidden, self._weights.norm, self._geometry.norm_eps)
        return linear(normed, self._weights.head).float()

    def likeliest(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows] the token of the largest logit, the lowest id on a tie, of rows that `forward` gave."""
        return self.logits(hidden).argmax(-1)

    def _step(self, batch: Batch) -> "_Step":
        like = self._weights.norm
        positions = batch.positions.to(like.device)
        cos, sin = self._rotary
        return _Step(
            rotary=(cos[positions, None], sin[positions, None]),
            slots=batch.slots.to(like.device),
            plan=AttentionPlan.of(batch.spans, self._kv[0].block_size, device=like.device, dtype=like.dtype),
            deltas=batch.deltas,
        )


@dataclass(frozen=True)
class _Step:
    """What all layers need to know of a batch. `rotary`: cos and sin, [tokens, 1, head_dim] each."""

    rotary: tuple[torch.Tensor, torch.Tensor]
    slots: torch.Tensor
    plan: AttentionPlan
    deltas: Sequence[DeltaRows]


class _DecoderLayer:
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(
        self,
        index: int,
        weights: LayerWeights,
        geometry: ModelGeometry,
        window: int | None,
        activation: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self._index = index
        self._weights = weights
        self._geometry = geometry
        self._window = window
        self._mlp = NestedMLP(weights.gate, weights.up, weights.down, activation)

    def queries(self, hidden: torch.Tensor, step: _Step, kv: PagedKV) -> torch.Tensor:
        """[tokens, heads, head_dim]; keeps the tokens' keys and values."""
        weights, geometry = self._weights, self._geometry
        heads, kv_heads = geometry.num_heads, geometry.num_kv_heads
        x = _rms_norm(hidden, weights.input_norm, geometry.norm_eps)
        qkv = linear(x, weights.qkv, weights.qkv_bias)
        add_low_rank(qkv, x, rows_of_map(step.deltas, self._index, "qkv"))
        qkv = torch.unflatten(qkv, 1, (-1, geometry.head_dim))
        query, key, value = torch.split(qkv, [heads, kv_heads, kv_heads], dim=1)  # [tokens, heads, head_dim]
        if weights.q_norm is not None and weights.k_norm is not None:
            query = _rms_norm(query, weights.q_norm, geometry.norm_eps)
            key = _rms_norm(key, weights.k_norm, geometry.norm_eps)
        kv.write(step.slots, _rotate(key, *step.rotary), value)
        return _rotate(query, *step.rotary)

    def attend(self, hidden: torch.Tensor, queries: torch.Tensor, step: _Step, kv: PagedKV) -> torch.Tensor:
        """`hidden` [tokens, hidden] with attention added."""
        weights = self._weights
        attended = step.plan.attend(queries, kv, self._geometry.head_dim**-0.5, self._window).flatten(1)
        output = linear(attended, weights.output, weights.output_bias)
        add_low_rank(output, attended, rows_of_map(step.deltas, self._index, "output"))
        return hidden + output

    def feed_forward(self, hidden: torch.Tensor, step: _Step, blocks: Sequence[NeuronBlock]) -> torch.Tensor:
        """`hidden` [tokens, hidden] with the MLP added."""
        x = _rms_norm(hidden, self._weights.mlp_norm, self._geometry.norm_eps)
        return hidden + self._mlp(x, blocks, MLPDeltas.of(step.deltas, self._index))


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Zhang and Sennrich 2019 (arXiv 1910.07467), over the last dimension, in float32."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding (arXiv 2104.09864), halves layout. `x`: [tokens, heads, head_dim]."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def _activation(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    if name == "silu":
        return F.silu
    # Here, because importing it takes a second and 80 MB, and nearly every model is content with SiLU.
    from transformers.activations import ACT2FN

    function: Callable[[torch.Tensor], torch.Tensor] = ACT2FN[name]
    return function


def rotary_tables(
    config: PretrainedConfig, max_model_len: int, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, [max_model_len, head_dim] each, with whatever scaling the checkpoint asks for."""
    head_dim = ModelGeometry.from_config(config).head_dim
    rope = config.rope_parameters
    frequencies, scale = 1 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2).float() / head_dim), 1.0
    if rope["rope_type"] != "default":
        frequencies, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config)
    angles = torch.arange(max_model_len).float()[:, None] * frequencies  # [positions, head_dim / 2]
    angles = torch.cat((angles, angles), dim=-1).to(like.device)
    return (angles.cos() * scale).to(like.dtype), (angles.sin() * scale).to(like.dtype)
