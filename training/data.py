"""Turns generated problems and stories into batches of token ids with the answers marked for learning.

Seeded: the same seed gives the same batches. Knows nothing of the model or of its optimizer.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from eval.tasks.stories import exchanges
from eval.tasks.word_problems import problems
from training.tokenizer import TURN_END, TURN_START

IGNORED = -100  # the label that torch's cross entropy leaves out

DISTRACTOR_SHARE = 0.2
LONG_SHARE = 0.1  # conversations of several turns, so that the later positions are trained too
SYSTEM_SHARE = 0.1
SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "Solve the problem step by step.",
    "You are good at arithmetic.",
    "Answer briefly.",
)
_POOL = 2_048  # conversations sorted by length at a time: rows of one batch are nearly equally long


@dataclass(frozen=True)
class Batch:
    """Conversations side by side.

    Attributes:
        input_ids: [rows, length], padded on the right; under causal attention padding there reaches no token.
        labels: [rows, length], the id that position i should predict, i.e. token i + 1; `IGNORED` elsewhere.
        tokens: positions that are not padding.
    """

    input_ids: Tensor
    labels: Tensor
    tokens: int


def turns(seed: int) -> Iterator[tuple[str, str]]:
    """An endless stream of (user message, answer), a fifth of it no arithmetic."""
    rng = random.Random(f"mixture/{seed}")
    arithmetic, other = problems("training", seed), exchanges(str(seed))
    while True:
        if rng.random() < DISTRACTOR_SHARE:
            exchange = next(other)
            yield exchange.prompt, exchange.answer
        else:
            problem = next(arithmetic)
            yield problem.prompt, problem.answer


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, batch_tokens: int, context: int
) -> Iterator[Batch]:
    """An endless stream of batches.

    Args:
        batch_tokens: positions in a batch at most, padding included.
        context: tokens in a row at most.
    """
    rng = random.Random(f"batches/{seed}")
    stream = turns(seed)
    pad_id = tokenizer.pad_token_id
    assert isinstance(pad_id, int)
    while True:
        rows = sorted(_conversations(tokenizer, stream, rng, context), key=lambda row: len(row[0]))
        groups: list[list[tuple[list[int], list[int]]]] = [[]]
        for row in rows:
            if (len(groups[-1]) + 1) * len(row[0]) > batch_tokens and groups[-1]:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            yield _collate(group, pad_id)


def _conversations(
    tokenizer: PreTrainedTokenizerFast, stream: Iterator[tuple[str, str]], rng: random.Random, context: int
) -> list[tuple[list[int], list[int]]]:
    """A pool of (ids, labels), the labels not yet shifted."""
    counts = [rng.randint(2, 6) if rng.random() < LONG_SHARE else 1 for _ in range(_POOL)]
    segments: list[str] = []  # by turns: what is read, what is learned
    for count in counts:
        opening = ""
        if rng.random() < SYSTEM_SHARE:
            opening = f"{TURN_START}system\n{rng.choice(SYSTEM_MESSAGES)}{TURN_END}\n"
        for prompt, answer in islice(stream, count):
            segments.append(f"{opening}{TURN_START}user\n{prompt}{TURN_END}\n{TURN_START}assistant\n")
            segments.append(f"{answer}{TURN_END}")
            opening = "\n"
    encoded = iter(tokenizer(segments, add_special_tokens=False)["input_ids"])
    rows = []
    for count in counts:
        ids: list[int] = []
        labels: list[int] = []
        for _ in range(count):
            read, learned = next(encoded), next(encoded)
            if len(ids) + len(read) + len(learned) <= context:  # else the conversation ends a turn earlier
                ids += read + learned
                labels += [IGNORED] * len(read) + learned
        rows.append((ids, labels))
    return rows


def _collate(rows: list[tuple[list[int], list[int]]], pad_id: int) -> Batch:
    length = max(len(ids) for ids, _ in rows)
    input_ids = torch.full((len(rows), length), pad_id)
    labels = torch.full((len(rows), length), IGNORED)
    for i, (ids, row_labels) in enumerate(rows):
        input_ids[i, : len(ids)] = torch.tensor(ids)
        labels[i, : len(ids) - 1] = torch.tensor(row_labels[1:])
    return Batch(input_ids, labels, sum(len(ids) for ids, _ in rows))
