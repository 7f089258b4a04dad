"""Groups token sequences into padded batches for measuring. Knows token ids, not text and not models."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

IGNORED_LABEL = -100  # what torch's cross-entropy leaves out by default


@dataclass(frozen=True)
class TokenSequence:
    """A prompt and what the model answered; no answer where only the prompt is of interest.

    Attributes:
        weights: how much each token of the answer counts in a measurement; none: 1 each.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()

    @property
    def fed(self) -> tuple[int, ...]:
        """The tokens that the model is fed when it serves: the last one of an answer never is."""
        return self.prompt + self.answer[:-1]


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Sequences padded on the right; all tensors are [sequences, tokens].

    Attributes:
        input_ids: int64, the tokens fed.
        prompt_mask: bool, tokens of prompts. No padding.
        answer_mask: bool, tokens of answers. No padding.
        labels: int64, at each position the answer token that comes next, -100 where none does.
        weights: float32, how much that token counts; 1 where none comes.
    """

    input_ids: Tensor
    prompt_mask: Tensor
    answer_mask: Tensor
    labels: Tensor
    weights: Tensor

    @property
    def attention_mask(self) -> Tensor:
        return (self.prompt_mask | self.answer_mask).long()

    @cached_property
    def part_weights(self) -> Tensor:
        """float32 [sequences, 2, tokens], how much each token counts in the prompt, and in the answer."""
        return torch.stack([self.prompt_mask, self.answer_mask], dim=1) * self.weights.unsqueeze(1)


def with_answers(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[TokenSequence]:
    """Each prompt with its answer."""
    return [TokenSequence(tuple(p), tuple(a)) for p, a in zip(prompts, answers, strict=True)]


def pad_batch(sequences: Sequence[TokenSequence], device: torch.device) -> TokenBatch:
    """Puts sequences of any lengths into one batch on `device`."""
    shape = (len(sequences), max(len(sequence.fed) for sequence in sequences))
    input_ids = torch.zeros(shape, dtype=torch.int64)
    prompt_mask = torch.zeros(shape, dtype=torch.bool)
    answer_mask = torch.zeros(shape, dtype=torch.bool)
    labels = torch.full(shape, IGNORED_LABEL)
    weights = torch.ones(shape)
    for row, sequence in enumerate(sequences):
        prompt_end, end = len(sequence.prompt), len(sequence.fed)
        input_ids[row, :end] = torch.tensor(sequence.fed)
        prompt_mask[row, :prompt_end] = True
        answer_mask[row, prompt_end:end] = True
        if sequence.answer:
            labels[row, prompt_end - 1 : end] = torch.tensor(sequence.answer)
        if sequence.weights:
            weights[row, prompt_end - 1 : end] = torch.tensor(sequence.weights)
    return TokenBatch(
        input_ids=input_ids.to(device),
        prompt_mask=prompt_mask.to(device),
        answer_mask=answer_mask.to(device),
        labels=labels.to(device),
        weights=weights.to(device),
    )


def in_batches(
    sequences: Sequence[TokenSequence], max_tokens: int, max_rows: int
) -> Iterator[list[TokenSequence]]:
    """The sequences themselves, as `grouped` groups their lengths."""
    for group in grouped([len(sequence.fed) for sequence in sequences], max_tokens, max_rows):
        yield [sequences[index] for index in group]


def grouped(lengths: Sequence[int], max_tokens: int, max_rows: int) -> Iterator[list[int]]:
    """Indices in groups of like lengths, the longest first, so that what needs most memory fails at once.

    A group has at most `max_rows` members and, padded, at most `max_tokens` tokens; a single sequence that
    is longer has a group of its own.
    """
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        longest = lengths[group[0]] if group else 0
        if group and (len(group) == max_rows or (len(group) + 1) * longest > max_tokens):
            yield group
            group = []
        group.append(index)
    if group:
        yield group
