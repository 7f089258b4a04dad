"""Turns a scheduling decision into tensors, runs the model, samples and scores."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import islice

import torch

from server.engine.attention import AttentionSpan
from server.engine.batch import Batch
from server.engine.delta import DeltaRows
from server.engine.model import Decoder
from server.engine.nested_mlp import NeuronBlock, neuron_blocks
from server.engine.request import TokenLogprobs
from server.engine.sampler import SampledToken, sample
from server.engine.scheduler_output import ScheduledRequest, SchedulerOutput
from server.engine.scoring import RowToScore, score
from server.engine.variant import Variant


class ModelRunner:
    """Turns decisions about requests into batches of one decoder."""

    def __init__(self, decoder: Decoder, block_size: int) -> None:
        self._decoder = decoder
        self._block_size = block_size

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
        hidden = self._decoder.forward(self._batch(items))  # [output rows, hidden]
        scoring_rows, sampling_rows = _output_rows(items)
        sampled = iter(self._sample(_rows(hidden, sampling_rows), items))
        scored = self._score(_rows(hidden, scoring_rows), items) if scoring_rows else {}
        return {
            i.request.request_id: list(islice(sampled, i.num_samples)) for i in items if i.num_samples
        }, scored

    def _sample(self, hidden: torch.Tensor, items: Sequence[ScheduledRequest]) -> list[SampledToken]:
        """The tokens after the rows of `hidden`, which are those of all `items` in order."""
        requests = [item.request for item in items for _ in range(item.num_samples)]
        if all(request.sampling.is_plainly_greedy for request in requests):
            return [SampledToken(token_id, None) for token_id in self._decoder.likeliest(hidden).tolist()]
        return sample(self._decoder.logits(hidden), requests)

    def _score(
        self, hidden: torch.Tensor, items: Sequence[ScheduledRequest]
    ) -> dict[str, list[TokenLogprobs]]:
        """Request id → its scores. `hidden`: the `rows_to_score` of all `items` in order."""
        rows = [RowToScore.of(item.request, position) for item in items for position in item.rows_to_score]
        scores = iter(score(self._decoder.logits(hidden), rows))
        return {
            item.request.request_id: list(islice(scores, len(item.rows_to_score)))
            for item in items
            if item.rows_to_score
        }

    def _batch(self, items: Sequence[ScheduledRequest]) -> Batch:
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        output_rows: list[int] = []
        spans: list[AttentionSpan] = []
        size = self._block_size
        for item in items:
            request = item.request
            start, known = request.num_computed_tokens, request.num_computed_tokens + item.num_tokens
            stop = known + len(item.guesses)
            table = request.block_table
            first_row = len(token_ids)
            spans.append(AttentionSpan(first_row, first_row + stop - start, start, table))
            output_rows += [first_row + row - start for row in item.rows_to_score]
            token_ids += request.slice_tokens(start, known)
            token_ids += item.guesses
            positions += range(start, stop)
            slots += [table[p // size] * size + p % size for p in range(start, stop)]
            output_rows += range(len(token_ids) - item.num_samples, len(token_ids))
        return Batch(
            token_ids=torch.tensor(token_ids, dtype=torch.long),
            positions=torch.tensor(positions, dtype=torch.long),
            slots=torch.tensor(slots, dtype=torch.long),
            spans=spans,
            neuron_blocks=_neuron_blocks_per_layer(items),
            output_rows=output_rows,
            deltas=_delta_rows(items),
        )


def _rows(hidden: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Those of `hidden` that `rows` names, in order, each once."""
    if len(rows) == len(hidden):
        return hidden
    return hidden[torch.tensor(rows, dtype=torch.long, device=hidden.device)]


def _output_rows(items: Sequence[ScheduledRequest]) -> tuple[list[int], list[int]]:
    """Which of a batch's output rows are scored and which are sampled from: in each item first the former."""
    scoring: list[int] = []
    sampling: list[int] = []
    count = 0
    for item in items:
        start, count = count, count + len(item.rows_to_score)
        scoring += range(start, count)
        start, count = count, count + item.num_samples
        sampling += range(start, count)
    return scoring, sampling


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


def _neuron_blocks_per_layer(items: Sequence[ScheduledRequest]) -> Sequence[Sequence[NeuronBlock]]:
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
    return _neuron_blocks(tuple(widths), tuple(ends))


@lru_cache(maxsize=64)  # requests that decode together make the same step again and again
def _neuron_blocks(
    widths: tuple[tuple[int, ...], ...], ends: tuple[int, ...]
) -> tuple[tuple[NeuronBlock, ...], ...]:
    return tuple(tuple(neuron_blocks(layer_widths, ends)) for layer_widths in zip(*widths, strict=True))
