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

DISTRACTOR_SHARE = 0.2
LONG_SHARE = 0.1  # conversations of several turns, so that the later positions are trained too
SYSTEM_SHARE = 0.1
SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "Solve the problem step by step.",
    "You are good at arithmetic.",
    "Answer briefly.",
)
Row = tuple[list[int], list[bool]]  # ids, and whether each belongs to an answer

_POOL = 2_048  # conversations sorted by length at a time: rows of one batch are nearly equally long


@dataclass(frozen=True)
class Batch:
    """Conversations side by side.

    Attributes:
        input_ids: [rows, length], padded on the right; under causal attention padding there reaches no token.
        next_ids: [rows, length], the token that follows each position.
        in_answer: [rows, length], whether that token belongs to an answer, its <|im_end|> included.
        in_prompt: [rows, length], whether it is any other token; neither where padding or nothing follows.
    """

    input_ids: Tensor
    next_ids: Tensor
    in_answer: Tensor
    in_prompt: Tensor

    @property
    def tokens(self) -> int:
        """Positions that are not padding."""
        return int(self.in_answer.sum() + self.in_prompt.sum()) + len(self.input_ids)


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
        groups: list[list[Row]] = [[]]
        for row in rows:
            if (len(groups[-1]) + 1) * len(row[0]) > batch_tokens and groups[-1]:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            yield _collate(group, pad_id)


def _conversations(
    tokenizer: PreTrainedTokenizerFast, stream: Iterator[tuple[str, str]], rng: random.Random, context: int
) -> list[Row]:
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
        in_answer: list[bool] = []
        for _ in range(count):
            read, learned = next(encoded), next(encoded)
            if len(ids) + len(read) + len(learned) <= context:  # else the conversation ends a turn earlier
                ids += read + learned
                in_answer += [False] * len(read) + [True] * len(learned)
        rows.append((ids, in_answer))
    return rows


def _collate(rows: list[Row], pad_id: int) -> Batch:
    shape = (len(rows), max(len(ids) for ids, _ in rows))
    input_ids, next_ids = torch.full(shape, pad_id), torch.full(shape, pad_id)
    in_answer, in_prompt = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for i, (ids, row_in_answer) in enumerate(rows):
        following = len(ids) - 1
        input_ids[i, : len(ids)] = torch.tensor(ids)
        next_ids[i, :following] = torch.tensor(ids[1:])
        in_answer[i, :following] = torch.tensor(row_in_answer[1:])
        in_prompt[i, :following] = ~in_answer[i, :following]
    return Batch(input_ids, next_ids, in_answer, in_prompt)
