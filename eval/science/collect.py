"""Reads what studies and evaluations have found on one ground, a model and a task, whoever ran them and when.

Results of other items, weights, limits or gradings are not put together. Knows files, draws no conclusions.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import evaluation as evaluations
from eval.evaluation import Evaluation
from eval.provenance import Provenance
from eval.science.published import PAPER_METHOD, RANDOM_METHODS
from eval.study import results as studies
from eval.study.results import Score, StudyResults
from eval.subject import REVERSED_SUFFIX
from pruning.errors import SecateurError
from pruning.ranking.scores import DEFAULT_SCORE

MODELS = ("coder-0.5b", "coder-1.5b")
TASKS = ("humaneval", "gsm8k")
SPARSITIES = (0.1, 0.2, 0.3, 0.35)
METHODS = (DEFAULT_SCORE, PAPER_METHOD, *RANDOM_METHODS, DEFAULT_SCORE + REVERSED_SUFFIX)
DENSE = "dense"
CORRECTED = "+ "  # between an order and the name of a delta
STUDY_FILE, EVALUATION_FILES = "results.json", "eval-*.json"
TASK_DIGEST = "digest"  # of what is drawn from, and of how it is graded
FINGERPRINT_DIGITS = 16  # that a study keeps


class ScienceError(SecateurError):
    """Results contradict each other, or are not of the same thing."""


@dataclass(frozen=True)
class Point:
    """One method at one sparsity; the dense model is the method `DENSE` at 0.

    Attributes:
        right: one character an item, "1" where it was solved.
        source: the file that it was read from, relative to the directory of all studies.
    """

    method: str
    sparsity: float
    exact_sparsity: float
    score: Score
    right: str
    source: str


@dataclass(frozen=True)
class Source:
    """A file of results, and where they were measured."""

    path: str
    provenance: Provenance


@dataclass(frozen=True)
class Ground:
    """All that is known of one model at one task.

    Attributes:
        points: by method and sparsity, the dense model first, then in the order of the files.
        left_out: evaluations by another grading, or of other items, than the studies.
    """

    model: str
    task: str
    points: Mapping[tuple[str, float], Point]
    sources: tuple[Source, ...]
    left_out: tuple[Point, ...]

    @property
    def dense(self) -> Point | None:
        return self.points.get((DENSE, 0.0))

    @property
    def methods(self) -> tuple[str, ...]:
        """Those that were asked for, then others that there are."""
        found = dict.fromkeys(method for method, _ in self.points if method != DENSE)
        return (*METHODS, *(method for method in found if method not in METHODS))

    def of(self, method: str) -> list[Point]:
        """By rising sparsity."""
        return sorted((p for p in self.points.values() if p.method == method), key=lambda p: p.sparsity)

    def missing(self) -> list[tuple[str, float]]:
        """What was asked for and is not there."""
        wanted = [(DENSE, 0.0), *((method, sparsity) for method in METHODS for sparsity in SPARSITIES)]
        return [cell for cell in wanted if cell not in self.points]


def collect(directory: Path) -> dict[tuple[str, str], Ground]:
    """Every ground that was asked for, be it empty, from the studies under `directory`.

    Evaluations may lie beside a study's results. In a folder of their own there, the order of the neurons was
    measured otherwise, and the folder's name says how. Those of another digest of the task are left out, so
    that a study may be made anew, with a newer grading say, before they are.

    Raises:
        ScienceError: results of one ground differ in items, weights or limits, or a cell is there twice.
        ResultsError: a file cannot be read.
    """
    found: dict[tuple[str, str], list[_Read]] = {(model, task): [] for model in MODELS for task in TASKS}
    for path in sorted(directory.glob(f"*/{STUDY_FILE}")):
        study = studies.load(path)
        ground = (study.model["name"], study.task["name"])
        if ground in found:
            found[ground].append(_read_study(study, str(path.relative_to(directory))))
    for depth in ("*", "*/*"):
        for path in sorted(directory.glob(f"{depth}/{EVALUATION_FILES}")):
            evaluation = evaluations.load(path)
            ground = (evaluation.model["name"], evaluation.task["name"])
            if ground in found:
                found[ground].append(_read_evaluation(evaluation, path.relative_to(directory)))
    return {ground: _put_together(*ground, read) for ground, read in found.items()}


@dataclass(frozen=True)
class _Read:
    """What is in one file. `conditions` have to be those of the other files."""

    source: Source
    conditions: dict[str, Any]
    points: Sequence[Point]
    is_study: bool


def _put_together(model: str, task: str, read: Sequence[_Read]) -> Ground:
    points: dict[tuple[str, float], Point] = {}
    sources: list[Source] = []
    left_out: list[Point] = []
    for each in read:
        path, first, expected = each.source.path, read[0].source.path, read[0].conditions
        differing = [name for name in expected if each.conditions[name] != expected[name]]
        if differing == [TASK_DIGEST] and not each.is_study:
            left_out += each.points
            continue
        if differing:
            raise ScienceError(
                f"{path} and {first} differ in {', '.join(differing)}: results of {model} at {task} stand in "
                "one table only if items, weights and limits are the same; move one elsewhere"
            )
        for point in each.points:
            before = points.setdefault((point.method, point.sparsity), point)
            if before is not point and point.method != DENSE:  # the dense model is part of every study
                raise ScienceError(
                    f"{path} and {before.source} both have {point.method} at {point.sparsity:g} of {model} "
                    f"at {task}: remove one"
                )
        sources.append(each.source)
    return Ground(model, task, points, tuple(sources), tuple(left_out))


def _read_study(study: StudyResults, path: str) -> _Read:
    points = [
        Point(
            method=DENSE if cell is study.dense else cell.strategy,
            sparsity=cell.sparsity,
            exact_sparsity=cell.exact_sparsity,
            score=cell.score,
            right=cell.right,
            source=path,
        )
        for cell in study.cells
    ]
    weights = {"fingerprint": study.model["fingerprint"], "dtype": study.model["dtype"]}
    conditions = _conditions(study.task, study.settings, weights)
    return _Read(Source(path, study.provenance), conditions, points, is_study=True)


def order_and_rest(method: str) -> tuple[str, str]:
    """The order that a method goes by, and what else its name says: a delta, 8 bits, or nothing."""
    order, *rest = re.split(r" (?=\+ |in int8$)", method, maxsplit=1)
    return order, "".join(rest)


def _read_evaluation(evaluation: Evaluation, path: Path) -> _Read:
    """One method at one sparsity; how it was measured, a delta and 8 bits are part of its name."""
    _, _, delta = evaluation.variant.name.partition("+")
    sparsity = evaluation.settings["sparsity"]
    method = evaluation.model["strategy"] if sparsity else DENSE
    dtype, _, quantization = evaluation.model["dtype"].partition(" ")
    for folder in path.parts[1:-1]:
        method += f", {folder.replace('-', ' ')}"
    method += f" {CORRECTED}{delta}" if delta else ""
    method += f" in {quantization}" if quantization else ""
    point = Point(
        method=method,
        sparsity=sparsity,
        exact_sparsity=evaluation.variant.exact_sparsity,
        score=evaluation.score,
        right="".join("01"[answer.correct] for answer in evaluation.answers.values()),
        source=str(path),
    )
    fingerprint = evaluation.model["model"][:FINGERPRINT_DIGITS]
    weights = {"fingerprint": fingerprint, "dtype": dtype}
    conditions = _conditions(evaluation.task, evaluation.settings, weights)
    return _Read(Source(str(path), evaluation.provenance), conditions, [point], is_study=False)


def _conditions(
    task: Mapping[str, Any], settings: Mapping[str, Any], weights: Mapping[str, Any]
) -> dict[str, Any]:
    items = {name: task[name] for name in (TASK_DIGEST, "items", "seed", "max_new_tokens")}
    return {**items, "stop_on_loop": settings["stop_on_loop"], **weights}
