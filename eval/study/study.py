"""The experiment of arXiv 2604.27115 on any model: every strategy at every sparsity, on the same items.

A cell is one strategy at one sparsity; the dense model is one cell for all strategies. Every answer is
written down once it is graded, under a digest of all that may change it, so that a study that was interrupted
goes on, and one that is finished costs nothing to run again. Knows no engine and no HTTP: a `Subject` brings
the model. What the answers amount to is for eval/study/results.py.
"""

import hashlib
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from eval.grading import GradedAnswer, Grader, for_each
from eval.study.journal import AnswerLine, Journal, RunLine, VariantLine
from eval.subject import Strategy, StudiedModel, Subject, VariantFacts
from eval.task import Task, TaskItem

TIMED_REQUESTS = 32
TIMED_TOKENS = 64
TIMED_ROUNDS = 3


@dataclass(frozen=True)
class Cell:
    """One strategy at one sparsity, with an answer to every item, in the items' order."""

    strategy: Strategy
    sparsity: float
    facts: VariantFacts
    tokens_per_second: float | None
    answers: tuple[GradedAnswer, ...]


class Study:
    """Asks every subject every item, at every sparsity.

    Args:
        journal: what is known already, and where the rest is written.
        settings: what besides subject, task and items may change an answer, as JSON.
        command: what began it, for whoever reads how long it took.
        at_once: answers under way; above what a model runs at once, so that it never waits for the grading.
        grades_at_once: answers being graded.
    """

    def __init__(
        self,
        task: Task,
        items: Sequence[TaskItem],
        journal: Journal,
        settings: dict[str, Any],
        *,
        command: str,
        at_once: int,
        grades_at_once: int,
        progress: bool,
    ) -> None:
        self._task = task
        self._items = {_item_key(item): item for item in items}
        self._journal = journal
        self._settings = settings
        self._command = command
        self._at_once = at_once
        self._grader = Grader(task, grades_at_once)
        self._progress = progress

    async def run(self, subjects: Sequence[Subject]) -> list[Cell]:
        """Completes the journal and returns what is in it. Each subject is loaded once, or not at all.

        Speed is measured for the first subject alone: variants of other orders are as large, and as fast.

        Raises:
            SecateurError: a model cannot be loaded or does not answer; what was graded is kept.
        """
        total = len(self._items) * sum(len(subject.sparsities) for subject in subjects)
        missing = sum(len(self._missing(subject)) for subject in subjects)
        bar = tqdm(
            total=total, initial=total - missing, desc="study", unit="answer", disable=not self._progress
        )
        incomplete = [s for s in subjects if self._missing(s) or self._unmeasured(s)]
        started = time.monotonic()
        try:
            with bar:
                for subject in incomplete:
                    bar.set_description(subject.strategy.name)
                    await self._complete(subject, bar, timed=subject is subjects[0])
        finally:
            if incomplete:
                self._journal.add(RunLine(command=self._command, seconds=time.monotonic() - started))
        return self.complete(subjects)

    def complete(self, subjects: Sequence[Subject]) -> list[Cell]:
        """The cells of which the journal has every answer, in the order of subjects and rising sparsities."""
        return [
            self._cell(subject, sparsity)
            for subject in subjects
            for sparsity in sorted(subject.sparsities)
            if self._is_complete(subject, sparsity)
        ]

    async def _complete(self, subject: Subject, bar: "tqdm[Any]", *, timed: bool) -> None:
        async with subject.open() as model:
            await self._measure(subject, model, timed=timed)

            async def answer(cell_item: tuple[float, str]) -> None:
                sparsity, key = cell_item
                item = self._items[key]
                said = await model.generate(
                    item.prompt,
                    variant=model.facts(sparsity).name,
                    max_tokens=self._task.max_new_tokens,
                )
                graded = await self._grader.grade(item, said)
                self._journal.add(AnswerLine(cell=self._key(subject, sparsity), item=key, answer=graded))
                bar.update()

            await for_each(self._missing(subject), answer, self._at_once)

    async def _measure(self, subject: Subject, model: StudiedModel, *, timed: bool) -> None:
        """What the variants cost and, if `timed`, how fast each is by itself, before anything else runs."""
        unmeasured = self._unmeasured(subject)
        speeds = await self._speeds(model, unmeasured) if timed else {}
        for sparsity in unmeasured:
            self._journal.add(
                VariantLine(
                    cell=self._key(subject, sparsity),
                    facts=model.facts(sparsity),
                    tokens_per_second=speeds.get(sparsity),
                )
            )

    async def _speeds(self, model: StudiedModel, sparsities: Sequence[float]) -> dict[float, float]:
        """Tokens a second by sparsity, without those that the model cannot time."""
        prompts = [item.prompt for item in self._items.values()]
        prompts = (prompts * TIMED_REQUESTS)[:TIMED_REQUESTS]
        rounds: dict[float, list[float]] = {sparsity: [] for sparsity in sparsities}
        for _ in range(TIMED_ROUNDS):  # in turns: what else the machine does meets all of them
            for sparsity in sparsities:
                speed = await model.tokens_per_second(sparsity, prompts, max_tokens=TIMED_TOKENS)
                if speed is not None:
                    rounds[sparsity].append(speed)
        return {sparsity: statistics.median(speeds) for sparsity, speeds in rounds.items() if speeds}

    def _missing(self, subject: Subject) -> list[tuple[float, str]]:
        """Sparsest first: their answers are the longest, and at the end the batch should not run empty."""
        return [
            (sparsity, item)
            for sparsity in sorted(subject.sparsities, reverse=True)
            for item in self._unanswered(self._key(subject, sparsity))
        ]

    def _unanswered(self, cell: str) -> list[str]:
        return [item for item in self._items if (cell, item) not in self._journal.answers]

    def _unmeasured(self, subject: Subject) -> list[float]:
        return [s for s in subject.sparsities if self._key(subject, s) not in self._journal.variants]

    def _is_complete(self, subject: Subject, sparsity: float) -> bool:
        cell = self._key(subject, sparsity)
        return cell in self._journal.variants and not self._unanswered(cell)

    def _cell(self, subject: Subject, sparsity: float) -> Cell:
        key = self._key(subject, sparsity)
        variant = self._journal.variants[key]
        return Cell(
            strategy=subject.strategy,
            sparsity=sparsity,
            facts=variant.facts,
            tokens_per_second=variant.tokens_per_second,
            answers=tuple(self._journal.answers[key, item] for item in self._items),
        )

    def _key(self, subject: Subject, sparsity: float) -> str:
        return _digest(
            {
                "subject": subject.identity(sparsity),
                "sparsity": sparsity,
                "task": self._task.digest,
                "max_tokens": self._task.max_new_tokens,
                "settings": self._settings,
            }
        )


def _item_key(item: TaskItem) -> str:
    return _digest(asdict(item))


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
