"""One variant at one task: its accuracy, its traps, and how fast its answers came. Behind `secateur eval`."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm

from eval.generate import Generate
from eval.grading import GradedAnswer, Grader, for_each
from eval.provenance import Provenance
from eval.study.results import ResultsError, Score
from eval.subject import VariantFacts
from eval.task import Task, TaskItem
from pruning.files import write_atomically


@dataclass(frozen=True)
class Evaluation:
    """What `secateur eval --out` writes.

    Attributes:
        model, task, settings: what was asked for and what it was asked of, for whoever reads it.
        wall_seconds: from the first question to the last grade.
        tokens_per_second: generated ones, over that time.
        answers: item id -> what was said, in the items' order.
    """

    model: dict[str, Any]
    variant: VariantFacts
    task: dict[str, Any]
    settings: dict[str, Any]
    score: Score
    wall_seconds: float
    tokens_per_second: float
    answers: dict[str, GradedAnswer]
    provenance: Provenance


_EVALUATION = TypeAdapter(Evaluation)


async def answer_items(
    generate: Generate,
    task: Task,
    items: Sequence[TaskItem],
    variant: str,
    *,
    at_once: int,
    grades_at_once: int,
    progress: bool,
) -> tuple[dict[str, GradedAnswer], float]:
    """The graded answers by item id, in the items' order, and the seconds that it took.

    Raises:
        GenerateError: an answer could not be had.
    """
    grader, found = Grader(task, grades_at_once), dict[str, GradedAnswer]()
    bar = tqdm(total=len(items), desc=variant, unit="answer", disable=not progress)

    async def answer(item: TaskItem) -> None:
        said = await generate(item.prompt, variant=variant, max_tokens=task.max_new_tokens)
        found[item.item_id] = await grader.grade(item, said)
        bar.update()

    start = time.monotonic()
    with bar:
        await for_each(items, answer, at_once)
    return {item.item_id: found[item.item_id] for item in items}, time.monotonic() - start


def summary(evaluation: Evaluation) -> str:
    """For a terminal."""
    score = evaluation.score
    traps = ", ".join(f"{trap.value} {count}" for trap, count in score.traps.items()) or "none"
    return "\n".join(
        [
            f"{evaluation.variant.name} on {evaluation.task['name']}",
            f"  accuracy   {score.accuracy:.1%} ({100 * score.low:.1f} to {100 * score.high:.1f}), "
            f"{score.correct:,} of {score.items:,}",
            f"  traps      {score.trap_rate:.1%}: {traps}",
            f"  speed      {evaluation.tokens_per_second:,.0f} tokens/s, "
            f"{score.completion_tokens:,} tokens in {evaluation.wall_seconds:,.0f} s",
        ]
    )


def load(path: Path) -> Evaluation:
    """Reads what `save` wrote. Raises ResultsError."""
    try:
        return _EVALUATION.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ResultsError(f"{path} is no result of an evaluation: {error}") from error


def save(evaluation: Evaluation, path: Path) -> None:
    """Writes it as JSON. Raises OSError."""
    write_atomically(path, _EVALUATION.dump_json(evaluation, indent=2) + b"\n")
