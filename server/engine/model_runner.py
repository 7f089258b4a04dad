"""Turns a scheduling decision into tensors, runs the model, and samples. Owns the keys and values."""

from collections.abc import Sequence

import torch

from server.engine.attention import AttentionPlan, DecodeBatch, PagedKV, PrefillChunk
from server.engine.config import EngineConfig
from server.engine.model import Batch, DecoderModel
from server.engine.nested_mlp import NeuronBlock, neuron_blocks
from server.engine.sampler import SampledToken, sample
from server.engine.scheduler import ScheduledRequest, SchedulerOutput
from server.engine.variant import Variant


class ModelRunner:
    """One model and the KV memory of its requests."""

    def __init__(
        self,
        model: DecoderModel,
        config: EngineConfig,
        num_blocks: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._model = model
        self._block_size = config.block_size
        self._device = device
        self._dtype = dtype
        geometry = model.geometry
        self._kv = [
            PagedKV(num_blocks, config.block_size, geometry.num_kv_heads, geometry.head_dim, device, dtype)
            for _ in range(geometry.num_layers)
        ]

    @property
    def kv_bytes(self) -> int:
        """Memory of keys and values, all layers."""
        return sum(kv.keys.nbytes + kv.values.nbytes for kv in self._kv)

    @torch.inference_mode()
    def run(self, output: SchedulerOutput) -> dict[str, SampledToken]:
        """Computes one step. Returns the new token of each request that has caught up, by request id."""
        # Variants nest, so the total of the widths orders them in every layer at once.
        items = sorted(output.scheduled, key=lambda item: _by_width(item.request.variant))
        logits = self._model.forward(self._batch(items), self._kv)
        requests = [item.request for item in items if item.samples]
        return dict(zip((r.request_id for r in requests), sample(logits, requests), strict=True))

    def _batch(self, items: Sequence[ScheduledRequest]) -> Batch:
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        sampling_rows: list[int] = []
        decodes: list[tuple[int, ScheduledRequest]] = []
        prefills: list[PrefillChunk] = []
        size = self._block_size
        for item in items:
            request = item.request
            start, stop = request.num_computed_tokens, request.num_computed_tokens + item.num_tokens
            row = len(token_ids)
            token_ids += request.slice_tokens(start, stop)
            positions += range(start, stop)
            table = request.block_table
            slots += (table[p // size] * size + p % size for p in range(start, stop))
            if item.num_tokens == 1:
                decodes.append((row, item))
            else:
                prefills.append(
                    PrefillChunk(
                        start=row,
                        stop=len(token_ids),
                        blocks=self._tensor(table),
                        positions=torch.arange(start, stop, device=self._device),
                        padded_length=len(table) * size,
                    )
                )
            if item.samples:
                sampling_rows.append(len(token_ids) - 1)
        return Batch(
            token_ids=self._tensor(token_ids),
            positions=self._tensor(positions),
            slots=self._tensor(slots),
            attention=AttentionPlan(self._decode_batch(decodes), prefills, self._dtype),
            neuron_blocks=_neuron_blocks_per_layer(items),
            sampling_rows=self._tensor(sampling_rows),
        )

    def _decode_batch(self, decodes: Sequence[tuple[int, ScheduledRequest]]) -> DecodeBatch | None:
        if not decodes:
            return None
        tables = [item.request.block_table for _, item in decodes]
        longest = max(map(len, tables))
        return DecodeBatch(
            rows=self._tensor([row for row, _ in decodes]),
            blocks=self._tensor([table + [0] * (longest - len(table)) for table in tables]),
            positions=self._tensor([item.request.num_computed_tokens for _, item in decodes]),
            padded_length=longest * self._block_size,
        )

    def _tensor(self, values: Sequence[int] | Sequence[Sequence[int]]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)


def _by_width(variant: Variant) -> int:
    return -sum(variant.widths)


def _neuron_blocks_per_layer(items: Sequence[ScheduledRequest]) -> list[list[NeuronBlock]]:
    """Per layer, which neurons multiply which tokens of `items`, which come widest first."""
    widths: list[tuple[int, ...]] = []
    ends: list[int] = []
    end = 0
    for item in items:
        end += item.num_tokens
        if widths and widths[-1] == item.request.variant.widths:
            ends[-1] = end
        else:
            widths.append(item.request.variant.widths)
            ends.append(end)
    return [neuron_blocks(layer_widths, ends) for layer_widths in zip(*widths, strict=True)]
