"""What a study's answers amount to: accuracies, losses, traps, and up to where the loss is shown to be small.

Written and read as results.json, from which the report is drawn. Pure but for that file.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from eval.grading import GradedAnswer
from eval.provenance import Provenance
from eval.statistics import wilson_interval
from eval.study.paired import Comparison, Threshold, compare, threshold
from eval.study.study import Cell
from eval.subject import Strategy
from eval.traps import Trap
from pruning.errors import SecateurError
from pruning.files import write_atomically

FORMAT = 1


class ResultsError(SecateurError):
    """A result file cannot be read."""


@dataclass(frozen=True)
class Score:
    """How a set of answers did.

    Attributes:
        low, high: Wilson interval of the share that was right, two-sided.
        traps: how many answers fell into each trap, `Trap.NONE` left out.
        cut_off_loops: answers that were ended early because they went round in circles.
    """

    items: int
    correct: int
    low: float
    high: float
    traps: dict[Trap, int]
    cut_off_loops: int
    completion_tokens: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.items

    @property
    def trap_rate(self) -> float:
        return sum(self.traps.values()) / self.items


@dataclass(frozen=True)
class CellResult:
    """One strategy at one sparsity.

    Attributes:
        parameters, weight_bytes: of the network by itself; None where nobody told.
        tokens_per_second: in a batch of its own; None where it was not measured.
        comparison: with the dense model; None for the dense model.
        right: one character an item, "1" where it was solved: enough to do the statistics again.
    """

    strategy: str
    variant: str
    sparsity: float
    exact_sparsity: float
    parameters: int | None
    weight_bytes: int | None
    tokens_per_second: float | None
    score: Score
    comparison: Comparison | None
    right: str


@dataclass(frozen=True)
class StudyRun:
    """One run of a study. Several where it was interrupted, or asked for more later.

    Attributes:
        command: without where things lay.
        seconds: of loading, timing, answering and grading; profiles are measured before.
    """

    command: str
    seconds: float


@dataclass(frozen=True)
class StudyResults:
    """A study in full.

    Attributes:
        model, task, settings: what was asked for and what it was asked of, for whoever reads it.
        cells: the dense model first, then the strategies in their order, by rising sparsity.
        threshold: of the first strategy.
        runs: that led here, oldest first; runs that were killed are not among them.
    """

    model: dict[str, Any]
    task: dict[str, Any]
    settings: dict[str, Any]
    strategies: tuple[Strategy, ...]
    cells: tuple[CellResult, ...]
    threshold: Threshold
    provenance: Provenance
    runs: tuple[StudyRun, ...] = ()
    format: int = FORMAT

    @property
    def dense(self) -> CellResult:
        return self.cells[0]

    @property
    def sparsities(self) -> list[float]:
        """Of any strategy, rising, without the dense model's 0."""
        return sorted({cell.sparsity for cell in self.cells[1:]})

    def of(self, strategy: Strategy) -> list[CellResult]:
        """A strategy's cells by rising sparsity, the dense model not among them."""
        return [cell for cell in self.cells[1:] if cell.strategy == strategy.name]


_RESULTS = TypeAdapter(StudyResults)


def summarise(
    cells: Sequence[Cell],
    *,
    model: dict[str, Any],
    task: dict[str, Any],
    settings: dict[str, Any],
    tolerance: float,
    confidence: float,
    provenance: Provenance,
    runs: Sequence[StudyRun] = (),
) -> StudyResults:
    """Turns answers into results.

    Args:
        cells: on the same items in the same order; the first is the dense model, under the first strategy.
        tolerance: accuracy that a safe variant may lose, as a share of the items.
        confidence: of intervals and of the threshold.
    """
    dense = cells[0]
    assert dense.sparsity == 0, "without the dense model there is nothing to lose"
    results = [_cell_result(cell, dense, confidence) for cell in cells]
    strategies = tuple(dict.fromkeys(cell.strategy for cell in cells))
    comparisons = {
        result.sparsity: result.comparison
        for result in results
        if result.strategy == strategies[0].name and result.comparison is not None
    }
    return StudyResults(
        model=model,
        task=task,
        settings=settings,
        strategies=strategies,
        cells=tuple(results),
        threshold=threshold(comparisons, results[0].score.correct, tolerance, confidence),
        provenance=provenance,
        runs=tuple(runs),
    )


def score(answers: Sequence[GradedAnswer], confidence: float) -> Score:
    """Counts graded answers. Raises ValueError where there are none."""
    correct = sum(answer.correct for answer in answers)
    low, high = wilson_interval(correct, len(answers), confidence)
    traps = Counter(answer.trap for answer in answers if answer.trap is not Trap.NONE)
    return Score(
        items=len(answers),
        correct=correct,
        low=low,
        high=high,
        traps=dict(sorted(traps.items())),
        cut_off_loops=sum(answer.finish_reason == "loop" for answer in answers),
        completion_tokens=sum(answer.completion_tokens for answer in answers),
    )


def save(results: StudyResults, path: Path) -> None:
    """Writes results.json. Raises OSError."""
    write_atomically(path, _RESULTS.dump_json(results, indent=2) + b"\n")


def load(path: Path) -> StudyResults:
    """Reads it. Raises ResultsError."""
    try:
        return _RESULTS.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ResultsError(f"{path} is no result of a study: {error}") from error


def _cell_result(cell: Cell, dense: Cell, confidence: float) -> CellResult:
    right, dense_right = ([answer.correct for answer in each.answers] for each in (cell, dense))
    return CellResult(
        strategy=cell.strategy.name,
        variant=cell.facts.name,
        sparsity=cell.sparsity,
        exact_sparsity=cell.facts.exact_sparsity,
        parameters=cell.facts.parameters,
        weight_bytes=cell.facts.weight_bytes,
        tokens_per_second=cell.tokens_per_second,
        score=score(cell.answers, confidence),
        comparison=None if cell is dense else compare(dense_right, right, confidence),
        right="".join("01"[solved] for solved in right),
    )
