"""How far a pruned variant's next-token distributions are from the dense variant's, on the same tokens.

Pure: log-probabilities in, sums out. Sums add up over answers; means are taken where they are told.
"""

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

WORST_SHARE = 0.2  # of an answer's tokens
SMALLEST_REST = 1e-9  # probability; less is beyond what sums of float32 can tell


class ShadowOutcome(str, Enum):
    """What became of an answer that was drawn."""

    SCORED = "scored"
    DROPPED = "dropped"  # too many waited already
    FAILED = "failed"  # the dense variant went, or the engine died


@dataclass(frozen=True)
class Agreement:
    """Sums over the tokens of answers; `Agreement()` is of none.

    Attributes:
        agreements: tokens where both variants find the same one likeliest.
        kl_nats: divergence KL(dense || pruned), of distributions over the tokens that the pruned variant
            found likeliest and one bucket for the rest. A lower bound of the divergence over all tokens.
        worst_tokens, worst_kl_nats: the same over the fifth of each answer's tokens that diverges most.
    """

    answers: int = 0
    tokens: int = 0
    agreements: int = 0
    kl_nats: float = 0.0
    worst_tokens: int = 0
    worst_kl_nats: float = 0.0

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(
            self.answers + other.answers,
            self.tokens + other.tokens,
            self.agreements + other.agreements,
            self.kl_nats + other.kl_nats,
            self.worst_tokens + other.worst_tokens,
            self.worst_kl_nats + other.worst_kl_nats,
        )


def agreement(
    pruned: NDArray[np.float64], dense: NDArray[np.float64], same_choice: NDArray[np.bool_]
) -> Agreement:
    """Of one answer.

    Args:
        pruned, dense: log-probabilities [tokens, k] of the same k tokens at each position, tokens > 0.
        same_choice: [tokens], whether both find the same token likeliest.
    """
    kl = _divergences(pruned, dense)
    num_worst = math.ceil(WORST_SHARE * len(kl))
    worst = np.sort(kl)[-num_worst:]
    return Agreement(1, len(kl), int(same_choice.sum()), float(kl.sum()), num_worst, float(worst.sum()))


def _divergences(pruned: NDArray[np.float64], dense: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL(dense || pruned) [tokens] over k tokens and the rest; merging outcomes never adds to it."""
    dense_rest, pruned_rest = _rest(dense), _rest(pruned)
    over_tokens = (np.exp(dense) * (dense - pruned)).sum(axis=1)
    over_rest = dense_rest * (np.log(dense_rest) - np.log(pruned_rest))
    divergences: NDArray[np.float64] = np.maximum(over_tokens + over_rest, 0.0)
    return divergences


def _rest(logprobs: NDArray[np.float64]) -> NDArray[np.float64]:
    rest: NDArray[np.float64] = np.maximum(1.0 - np.exp(logprobs).sum(axis=1), SMALLEST_REST)
    return rest
