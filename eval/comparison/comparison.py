"""Which way of ranking neurons leaves a model most like its dense self: figures, intervals, a recommendation.

Pure: takes divergences along held-out answers (pruning/ranking/divergence.py), runs no model. What is
resampled is answers, for tokens of one answer are alike.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eval.provenance import Provenance
from pruning.ranking.divergence import AnswerDivergence
from pruning.ranking.widths import Allocation

CONFIDENCE = 0.95
RESAMPLES = 1000
WORST_SHARE = 0.2
# What float32 can tell of a divergence, in nats a token; below it one is as good as the other.
KL_FLOOR = 1e-6

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Candidate:
    """A way of ranking, with the widths that follow.

    Attributes:
        score: its name, or that of a ranking out of a file.
        protect_neurons, protect_layers: what goes last whatever its score (pruning/ranking/scores.py).
        ranking: digest.
    """

    score: str
    allocation: Allocation
    protect_neurons: float
    protect_layers: int
    ranking: str

    @property
    def name(self) -> str:
        """For people; tells candidates of one comparison apart."""
        parts = [self.score, self.allocation]
        if self.protect_neurons:
            parts.append(f"strongest {100 * self.protect_neurons:g}% last")
        if self.protect_layers:
            parts.append(f"outer layers last: {self.protect_layers}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Estimate:
    """A figure with the ends of its percentile bootstrap interval, at 95%."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Figures:
    """How far one variant goes astray.

    Attributes:
        kl: KL(dense ‖ variant), nats a token.
        worst_kl: the same over the worst fifth of the tokens.
        agreement: share of the tokens at which both hold the same one for the likeliest.
        end_probability: mean probability that the variant gives to the end where the dense model ended; None
            where no answer ended.
    """

    kl: Estimate
    worst_kl: Estimate
    agreement: Estimate
    end_probability: Estimate | None


@dataclass(frozen=True)
class Pruned:
    """One candidate at one sparsity."""

    candidate: Candidate
    sparsity: float
    exact_sparsity: float
    widths: tuple[int, ...]


@dataclass(frozen=True)
class Measured(Pruned):
    """What was measured along all answers, in the same order as those of the others."""

    answers: Sequence[AnswerDivergence]


@dataclass(frozen=True)
class Cell(Pruned):
    """What that amounts to."""

    figures: Figures


@dataclass(frozen=True)
class Standing:
    """A candidate over all sparsities.

    Attributes:
        times_best: geometric mean over the sparsities of its kl, as a multiple of the recommended one's; with
            the interval of the ratio on the same answers.
    """

    candidate: Candidate
    times_best: Estimate

    @property
    def is_shown_to_be_worse(self) -> bool:
        return self.times_best.low > 1


@dataclass(frozen=True)
class Comparison:
    """The result. `standings` are ordered, the recommended candidate first."""

    model: Mapping[str, Any]
    task: Mapping[str, Any]
    provenance: Provenance
    answers: int
    tokens: int
    dense_end_probability: float | None
    cells: tuple[Cell, ...]
    standings: tuple[Standing, ...]
    format: Literal[1] = 1

    @property
    def recommended(self) -> Candidate:
        return self.standings[0].candidate


def compare(
    measured: Sequence[Measured],
    dense: Sequence[AnswerDivergence],
    *,
    model: Mapping[str, Any],
    task: Mapping[str, Any],
    provenance: Provenance,
    seed: int,
) -> Comparison:
    """Sums up: every candidate at every sparsity, all on the same answers.

    Args:
        dense: of the dense model from itself.
        model, task, provenance: for whoever reads the result.
        seed: of the bootstrap.
    """
    weights = _weights(len(dense), seed)
    sparsities = sorted({m.sparsity for m in measured})
    cells = tuple(
        Cell(m.candidate, m.sparsity, m.exact_sparsity, m.widths, figures(m.answers, weights))
        for m in measured
    )
    log_kl: dict[Candidate, Array] = {}
    for m in measured:
        log_kl[m.candidate] = log_kl.get(m.candidate, 0.0) + np.log(
            np.maximum(_kl(m.answers, weights), KL_FLOOR)
        ) / len(sparsities)
    ranked = sorted(log_kl, key=lambda candidate: float(log_kl[candidate][0]))
    best = log_kl[ranked[0]]
    ends = [answer.end_probability for answer in dense if answer.end_probability is not None]
    return Comparison(
        model=model,
        task=task,
        provenance=provenance,
        answers=len(dense),
        tokens=sum(len(answer.kl) for answer in dense),
        dense_end_probability=sum(ends) / len(ends) if ends else None,
        cells=cells,
        standings=tuple(Standing(c, _estimate(np.exp(log_kl[c] - best))) for c in ranked),
    )


def figures(answers: Sequence[AnswerDivergence], weights: Array) -> Figures:
    """Of one variant.

    Args:
        weights: [resamples, answers], how often each answer counts; the first row is once each.
    """
    tokens = np.array([len(answer.kl) for answer in answers], dtype=np.float64)
    agreements = np.array([answer.agreements for answer in answers], dtype=np.float64)
    return Figures(
        kl=_estimate(_kl(answers, weights)),
        worst_kl=_estimate(_worst(answers, weights)),
        agreement=_estimate((weights @ agreements) / (weights @ tokens)),
        end_probability=_end_probability(answers, weights),
    )


def _weights(answers: int, seed: int) -> Array:
    """[1 + RESAMPLES, answers]: the answers as they are, then drawn with replacement."""
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(answers, np.full(answers, 1 / answers), size=RESAMPLES)
    return np.vstack([np.ones((1, answers)), drawn])


def _kl(answers: Sequence[AnswerDivergence], weights: Array) -> Array:
    sums = np.array([math.fsum(answer.kl) for answer in answers])
    tokens = np.array([len(answer.kl) for answer in answers], dtype=np.float64)
    means: Array = (weights @ sums) / (weights @ tokens)
    return means


def _worst(answers: Sequence[AnswerDivergence], weights: Array) -> Array:
    """Mean over the worst fifth of the tokens; where it is no whole number, a part of one counts."""
    kl = np.concatenate([np.array(answer.kl) for answer in answers])
    owner = np.repeat(np.arange(len(answers)), [len(answer.kl) for answer in answers])
    descending = np.argsort(-kl, kind="stable")
    kl, owner = kl[descending], owner[descending]
    means = np.empty(len(weights))
    for row, weight in enumerate(weights):
        counted = weight[owner]
        wanted = WORST_SHARE * counted.sum()
        before = np.cumsum(counted) - counted
        means[row] = (np.clip(wanted - before, 0, counted) * kl).sum() / wanted
    return means


def _end_probability(answers: Sequence[AnswerDivergence], weights: Array) -> Estimate | None:
    ended = np.array([answer.end_probability is not None for answer in answers], dtype=np.float64)
    if not ended.any():
        return None
    probabilities = np.array([answer.end_probability or 0.0 for answer in answers])
    counts = weights @ ended
    drawn = counts > 0  # a resample may hold none that ended; it says nothing
    return _estimate((weights @ probabilities)[drawn] / counts[drawn])


def _estimate(values: Array) -> Estimate:
    """The first is the figure, the others are of resamples."""
    low, high = np.quantile(values[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(values[0]), float(low), float(high))
