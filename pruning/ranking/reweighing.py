"""Makes tokens count by how far a pruned model goes astray at them. Takes divergences, runs no model."""

from collections.abc import Sequence
from dataclasses import replace

from pruning.calibration.batches import TokenSequence
from pruning.ranking.divergence import AnswerDivergence


def divergence_weights(found: Sequence[AnswerDivergence]) -> list[tuple[float, ...]]:
    """w = (1 + KL / mean KL) / 2 of every answer token, of mean 1; all 1 where nothing diverges.

    Half of the weight is dealt evenly, half by the divergence from the dense model, so no token is forgotten
    and those where the pruned model fails count most. Of our own making.
    """
    tokens = sum(len(answer.kl) for answer in found)
    mean = sum(sum(answer.kl) for answer in found) / tokens
    if mean <= 0:
        return [(1.0,) * len(answer.kl) for answer in found]
    return [tuple((1 + kl / mean) / 2 for kl in answer.kl) for answer in found]


def reweighed(
    sequences: Sequence[TokenSequence], weights: Sequence[tuple[float, ...]]
) -> tuple[TokenSequence, ...]:
    """The sequences, each with the weights of its answer's tokens."""
    return tuple(replace(sequence, weights=given) for sequence, given in zip(sequences, weights, strict=True))
