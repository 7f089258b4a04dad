"""Causal attention over paged keys and values, for a ragged batch.

Decoding requests (one new token each) are computed together, padded to the longest of them; requests with
more new tokens are computed one by one. Both read a request's KV through its block table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional as F


class AttentionSpan(NamedTuple):
    """One request's new tokens: rows [start, stop) of the batch, at consecutive positions."""

    start: int
    stop: int
    first_position: int
    block_table: Sequence[int]


class PagedKV:
    """Keys and values of one layer: [blocks, block_size, kv_heads, head_dim] each."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        kv_heads: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (num_blocks, block_size, kv_heads, head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    @property
    def block_size(self) -> int:
        return self.keys.shape[1]

    def write(self, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """`slots` [tokens]: block * block_size + offset; `keys`, `values`: [tokens, kv_heads, head_dim]."""
        self.keys.flatten(0, 1).index_copy_(0, slots, keys)
        self.values.flatten(0, 1).index_copy_(0, slots, values)

    def read(self, blocks: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`blocks` [requests, n] → keys and values, each [requests, kv_heads, n * block_size, head_dim].

        Zeros behind position `last` [requests]: what stands there is another request's or nobody's, and a
        masked NaN is still a NaN.
        """
        positions = torch.arange(blocks.shape[1] * self.block_size, device=blocks.device)
        unwritten = (positions > last[:, None])[:, :, None, None]
        keys, values = (
            kv[blocks].flatten(1, 2).masked_fill_(unwritten, 0) for kv in (self.keys, self.values)
        )
        return keys.transpose(1, 2), values.transpose(1, 2)


@dataclass(frozen=True)
class DecodeBatch:
    """Requests with one new token each.

    Attributes:
        rows: [requests] where their tokens stand in the batch.
        blocks: [requests, n] block tables, padded with block 0.
        positions: [requests] of the new tokens.
        padded_length: n * block_size.
    """

    rows: torch.Tensor
    blocks: torch.Tensor
    positions: torch.Tensor
    padded_length: int

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """[requests, 1, 1, padded_length], added to the scores."""
        return _causal_mask(self.positions[:, None], self.padded_length, window, dtype)[:, None]


@dataclass(frozen=True)
class PrefillChunk:
    """A request with several new tokens: rows [start, stop) of the batch, at consecutive positions."""

    start: int
    stop: int
    blocks: torch.Tensor  # [n]
    positions: torch.Tensor  # [stop - start]
    padded_length: int

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """[1, 1, new tokens, padded_length], added to the scores."""
        return _causal_mask(self.positions, self.padded_length, window, dtype)[None, None]


class AttentionPlan:
    """Where each request's tokens and KV are; the same for every layer of a step."""

    def __init__(
        self, decodes: DecodeBatch | None, prefills: Sequence[PrefillChunk], dtype: torch.dtype
    ) -> None:
        self._decodes = decodes
        self._prefills = prefills
        self._dtype = dtype
        self._masks: dict[int | None, tuple[torch.Tensor | None, list[torch.Tensor]]] = {}

    @classmethod
    def of(
        cls, spans: Sequence[AttentionSpan], block_size: int, device: torch.device, dtype: torch.dtype
    ) -> "AttentionPlan":
        """The plan for a batch, in blocks of `block_size` tokens."""
        decodes = [span for span in spans if span.stop - span.start == 1]
        prefills = [
            PrefillChunk(
                start=span.start,
                stop=span.stop,
                blocks=torch.tensor(span.block_table, device=device),
                positions=torch.arange(
                    span.first_position, span.first_position + span.stop - span.start, device=device
                ),
                padded_length=len(span.block_table) * block_size,
            )
            for span in spans
            if span.stop - span.start > 1
        ]
        return cls(_decode_batch(decodes, block_size, device) if decodes else None, prefills, dtype)

    def attend(self, query: torch.Tensor, kv: PagedKV, scale: float, window: int | None) -> torch.Tensor:
        """`query` [tokens, heads, head_dim] → the same shape. The step's keys are already written.

        Args:
            window: how many tokens a token sees, itself included; None for all before it.
        """
        decode_mask, prefill_masks = self._masks_of(window)
        output = torch.empty_like(query)
        if self._decodes is not None:
            rows = self._decodes.rows
            keys, values = kv.read(self._decodes.blocks, self._decodes.positions)
            # The query heads that share a KV head stand where query positions do: no copy of K or V.
            q = torch.unflatten(query[rows], 1, (keys.shape[1], -1))  # [requests, kv_heads, group, head_dim]
            o = F.scaled_dot_product_attention(q, keys, values, attn_mask=decode_mask, scale=scale)
            output[rows] = o.flatten(1, 2)
        for chunk, mask in zip(self._prefills, prefill_masks, strict=True):
            keys, values = kv.read(chunk.blocks[None], chunk.positions[-1:])
            q = query[chunk.start : chunk.stop].transpose(0, 1)[None]  # [1, heads, new tokens, head_dim]
            o = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale, enable_gqa=True)
            output[chunk.start : chunk.stop] = o[0].transpose(0, 1)
        return output

    def _masks_of(self, window: int | None) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        if window not in self._masks:
            decodes = None if self._decodes is None else self._decodes.mask(window, self._dtype)
            self._masks[window] = decodes, [chunk.mask(window, self._dtype) for chunk in self._prefills]
        return self._masks[window]


def _decode_batch(spans: Sequence[AttentionSpan], block_size: int, device: torch.device) -> DecodeBatch:
    longest = max(len(span.block_table) for span in spans)
    tables = [[*span.block_table, *[0] * (longest - len(span.block_table))] for span in spans]
    return DecodeBatch(
        rows=torch.tensor([span.start for span in spans], device=device),
        blocks=torch.tensor(tables, device=device),
        positions=torch.tensor([span.first_position for span in spans], device=device),
        padded_length=longest * block_size,
    )


def _causal_mask(
    positions: torch.Tensor, length: int, window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """`positions` [..., new tokens] → [..., new tokens, length]: 0 where seen, -inf elsewhere."""
    keys = torch.arange(length, device=positions.device)
    seen = keys <= positions[..., None]
    if window is not None:
        seen &= keys > positions[..., None] - window
    return torch.zeros(seen.shape, dtype=dtype, device=positions.device).masked_fill_(~seen, float("-inf"))
