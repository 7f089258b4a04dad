"""Turns a scheduling decision into tensors, runs the model, and samples."""

from collections.abc import Sequence
from itertools import islice

import torch

from server.engine.attention import AttentionSpan
from server.engine.delta import DeltaRows
from server.engine.model import Batch, Decoder
from server.engine.nested_mlp import NeuronBlock, neuron_blocks
from server.engine.request import TokenLogprobs
from server.engine.sampler import SampledToken, sample
from server.engine.scheduler import ScheduledRequest, SchedulerOutput
from server.engine.scoring import RowToScore, score
from server.engine.variant import Variant


class ModelRunner:
    """Turns decisions about requests into batches of one decoder."""

    def __init__(self, decoder: Decoder, block_size: int, device: torch.device) -> None:
        self._decoder = decoder
        self._block_size = block_size
        self._device = device

    @torch.inference_mode()
    def run(
        self, output: SchedulerOutput
    ) -> tuple[dict[str, list[SampledToken]], dict[str, list[TokenLogprobs]]]:
        """Computes one step.

        Returns, by request id: the tokens chosen after the last token and after each guess of a request that
        has caught up, and the scores of the rows that each wants scored.
        """
        # Variants nest, so the total of the widths orders them in every layer at once. Those of one delta are
        # neighbours, so that its matrices multiply one stretch of the batch.
        items = sorted(output.scheduled, key=lambda item: _by_width_and_delta(item.request.variant))
        logits = self._decoder.forward(self._batch(items))
        sampling = [item for item in items if item.samples]
        requests = [item.request for item in sampling for _ in range(1 + len(item.guesses))]
        sampled = iter(sample(logits[: len(requests)], requests))
        scored = _score(logits[len(requests) :], items)
        return {i.request.request_id: list(islice(sampled, 1 + len(i.guesses))) for i in sampling}, scored

    def _batch(self, items: Sequence[ScheduledRequest]) -> Batch:
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        sampling_rows: list[int] = []
        scored_rows: list[int] = []
        spans: list[AttentionSpan] = []
        size = self._block_size
        for item in items:
            request = item.request
            start, known = request.num_computed_tokens, request.num_computed_tokens + item.num_tokens
            stop = known + len(item.guesses)
            table = request.block_table
            first_row = len(token_ids)
            spans.append(AttentionSpan(first_row, first_row + stop - start, start, table))
            scored_rows += (first_row + row - start for row in item.rows_to_score)
            token_ids += [*request.slice_tokens(start, known), *item.guesses]
            positions += range(start, stop)
            slots += (table[p // size] * size + p % size for p in range(start, stop))
            if item.samples:
                sampling_rows += range(first_row + item.num_tokens - 1, len(token_ids))
        return Batch(
            token_ids=self._tensor(token_ids),
            positions=self._tensor(positions),
            slots=self._tensor(slots),
            spans=spans,
            neuron_blocks=_neuron_blocks_per_layer(items),
            sampling_rows=self._tensor(sampling_rows + scored_rows),
            deltas=_delta_rows(items),
        )

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)


def _score(logits: torch.Tensor, items: Sequence[ScheduledRequest]) -> dict[str, list[TokenLogprobs]]:
    """Request id → its scores. `logits`: [rows, vocabulary], the `rows_to_score` of all `items` in order."""
    rows = [RowToScore.of(item.request, position) for item in items for position in item.rows_to_score]
    scores = iter(score(logits, rows))
    return {
        item.request.request_id: list(islice(scores, len(item.rows_to_score)))
        for item in items
        if item.rows_to_score
    }


def _by_width_and_delta(variant: Variant) -> tuple[int, str]:
    return -sum(variant.widths), variant.delta_digest


def _delta_rows(items: Sequence[ScheduledRequest]) -> list[DeltaRows]:
    """The tokens of `items` whose variants have a delta; those of one delta are neighbours."""
    found: list[DeltaRows] = []
    end = 0
    for item in items:
        start, end = end, end + item.num_tokens + len(item.guesses)
        delta = item.request.variant.delta
        if delta is None:
            continue
        if found and found[-1].stop == start and found[-1].delta.digest == delta.digest:
            found[-1] = found[-1]._replace(stop=end)
        else:
            found.append(DeltaRows(start, end, delta))
    return found


def _neuron_blocks_per_layer(items: Sequence[ScheduledRequest]) -> list[list[NeuronBlock]]:
    """Per layer, which neurons multiply which tokens of `items`, which come widest first."""
    widths: list[tuple[int, ...]] = []
    ends: list[int] = []
    end = 0
    for item in items:
        end += item.num_tokens + len(item.guesses)
        if widths and widths[-1] == item.request.variant.widths:
            ends[-1] = end
        else:
            widths.append(item.request.variant.widths)
            ends.append(end)
    return [neuron_blocks(layer_widths, ends) for layer_widths in zip(*widths, strict=True)]
