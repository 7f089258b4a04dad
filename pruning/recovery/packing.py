"""Puts sequences end to end into rows without padding, and rows into training steps. Knows no models.

Within a row each sequence counts its positions from 0. That is how transformers tells them apart: where
positions start anew and no mask is given, attention stays within a sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from pruning.calibration.batches import TokenSequence

Row = tuple[int, ...]  # which sequences are in it
EPOCHS_APART = 1_000_003  # so that no epoch of one seed is an epoch of another


@dataclass(frozen=True, eq=False)
class PackedRow:
    """Sequences end to end.

    Attributes:
        input_ids: int64 [1, tokens], the tokens fed.
        position_ids: int64 [1, tokens], from 0 in each sequence.
        predicting: int64 [answer tokens], the places after which an answer's token comes.
        labels: int64 [answer tokens], those tokens.
    """

    input_ids: Tensor
    position_ids: Tensor
    predicting: Tensor
    labels: Tensor


def pack(sequences: Sequence[TokenSequence], device: torch.device) -> PackedRow:
    """One row of these sequences, in their order."""
    input_ids: list[int] = []
    position_ids: list[int] = []
    predicting: list[int] = []
    labels: list[int] = []
    for sequence in sequences:
        start, length = len(input_ids), len(sequence.fed)
        input_ids += sequence.fed
        position_ids += range(length)
        predicting += range(start + len(sequence.prompt) - 1, start + length)
        labels += sequence.answer
    return PackedRow(
        input_ids=torch.tensor([input_ids], device=device),
        position_ids=torch.tensor([position_ids], device=device),
        predicting=torch.tensor(predicting, device=device),
        labels=torch.tensor(labels, device=device),
    )


def fill_rows(lengths: Sequence[int], order: Sequence[int], row_tokens: int) -> list[Row]:
    """Deals sequences to rows of at most `row_tokens`, each to the first row that has room for it.

    A sequence that is longer than that gets a row of its own.

    Args:
        lengths: of all sequences, tokens fed.
        order: indices into `lengths`, in which they are dealt.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in order:
        length = lengths[index]
        row = next((place for place, left in enumerate(room) if left >= length), None)
        if row is None:
            row = len(rows)
            rows.append([])
            room.append(row_tokens)
        rows[row].append(index)
        room[row] -= length
    return [tuple(row) for row in rows]


def plan_steps(
    lengths: Sequence[int], *, row_tokens: int, step_tokens: int, epochs: int, seed: int
) -> list[tuple[Row, ...]]:
    """All training steps: in each epoch every sequence once, in an order that seed and epoch decide.

    The rows of an epoch are spread evenly over its steps, so that none is much smaller than `step_tokens`.
    Rows are no longer than a step.
    """
    row_tokens = min(row_tokens, step_tokens)
    steps: list[tuple[Row, ...]] = []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(seed * EPOCHS_APART + epoch)
        order = torch.randperm(len(lengths), generator=generator).tolist()
        rows = fill_rows(lengths, order, row_tokens)
        count = max(1, round(len(rows) * row_tokens / step_tokens))
        count = min(count, len(rows))
        bounds = [place * len(rows) // count for place in range(count + 1)]
        steps += [tuple(rows[start:end]) for start, end in pairwise(bounds)]
    return steps
