"""Bytes and FLOPs that a decoder must spend, counted from its shape. Knows no machine and measures nothing.

Counted: every weight once a step, keys and values read, two FLOPs for each weight and token, attention's two
products. Not counted, being small: activations, norms, rotation, softmax, keys and values written.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_BYTES = 2  # of a number in bfloat16


class Cost(NamedTuple):
    """What a piece of work needs."""

    num_bytes: float
    num_flops: float

    def plus(self, other: "Cost") -> "Cost":
        return Cost(self.num_bytes + other.num_bytes, self.num_flops + other.num_flops)

    def seconds(self, bytes_per_second: float, flops_per_second: float) -> float:
        """The least time at these limits, reading and computing side by side (the roofline)."""
        return max(self.num_bytes / bytes_per_second, self.num_flops / flops_per_second)


@dataclass(frozen=True)
class Geometry:
    """A Llama-like decoder's shape."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int

    @classmethod
    def read(cls, model: Path) -> "Geometry":
        """Of a checkpoint directory."""
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        heads = config["num_attention_heads"]
        return cls(
            hidden_size=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=config["num_key_value_heads"],
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            intermediate_size=config["intermediate_size"],
            vocab_size=config["vocab_size"],
        )

    def head(self, num_rows: int) -> Cost:
        """The matrix from hidden states to logits, for so many positions of one step."""
        weights = self.hidden_size * self.vocab_size
        return Cost(_BYTES * weights, 2 * weights * num_rows)

    def mlp(self, sparsities: Sequence[float]) -> Cost:
        """All layers' MLPs for one step of tokens with these sparsities.

        Each neuron is read once, and computed for the tokens that keep it: the neurons are nested.
        """
        weights = 3 * self.hidden_size * self.intermediate_size * self.num_layers
        return Cost(
            _BYTES * weights * (1 - min(sparsities)),
            2 * weights * sum(1 - sparsity for sparsity in sparsities),
        )

    def attention(self, num_tokens: int, seen: float, read: float) -> Cost:
        """All layers' attention blocks for one step: the four projections, and attention itself.

        Args:
            num_tokens: new tokens of all requests.
            seen: positions that they attend to, summed over the new tokens.
            read: positions whose keys and values are read, summed over the requests.
        """
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        projections = self.num_layers * self.hidden_size * (2 * queries + 2 * keys)
        return Cost(
            _BYTES * (projections + self.num_layers * 2 * keys * read),
            2 * projections * num_tokens + self.num_layers * 4 * queries * seen,
        )

    def decode(self, sparsities: Sequence[float], context: float) -> Cost:
        """A step of one new token for each of several requests, with so many positions each on average."""
        count = len(sparsities)
        return _sum(
            self.attention(count, count * context, count * context), self.mlp(sparsities), self.head(count)
        )

    def prefill(self, num_tokens: int, sparsity: float = 0.0) -> Cost:
        """A whole prompt of one request in one step, and its first token."""
        seen = num_tokens * (num_tokens + 1) / 2
        return _sum(
            self.attention(num_tokens, seen, num_tokens), self.mlp([sparsity] * num_tokens), self.head(1)
        )

    def answer(self, count: int, prompt_tokens: int, output_tokens: int, sparsity: float) -> tuple[Cost, ...]:
        """The steps of `count` equal requests: their prompts, one by one, and all later tokens together."""
        after = range(prompt_tokens + 1, prompt_tokens + output_tokens)
        prompts = [self.prefill(prompt_tokens, sparsity)] * count
        return (*prompts, *(self.decode([sparsity] * count, context) for context in after))


def _sum(*costs: Cost) -> Cost:
    total = Cost(0, 0)
    for cost in costs:
        total = total.plus(cost)
    return total
