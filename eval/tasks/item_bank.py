"""A finite supply of items: which ones calibrate and which ones judge, and seeded draws of both.

Knows neither files nor grading. Tasks whose items lie in files are built on it.
"""

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from eval.task import TaskError, TaskItem
from eval.tasks.records import read_records
from eval.tasks.stories import exchanges

DISTRACTOR_FIELD = "prompt"


@dataclass(frozen=True)
class ItemSplit:
    """Items to calibrate on, and items to be judged on. `source` names them in messages."""

    source: str
    calibration: Sequence[TaskItem]
    evaluation: Sequence[TaskItem]


def split_in_halves(items: Iterable[tuple[str, TaskItem]], source: str) -> ItemSplit:
    """Splits pairs of a question and its item by a hash of the question, about half to either side.

    The side depends on the question's text alone: not on its place in the file, on other questions, on a
    seed or on the process. So it stays when the file grows, and a question that occurs twice stays together.
    An item whose prompt has occurred already is left out.
    """
    calibration: dict[str, TaskItem] = {}
    evaluation: dict[str, TaskItem] = {}
    for question, item in items:
        side = evaluation if hashlib.sha256(question.encode()).digest()[0] & 1 else calibration
        side.setdefault(item.prompt, item)
    return ItemSplit(source, tuple(calibration.values()), tuple(evaluation.values()))


def item_id(task: str, prompt: str) -> str:
    """An id that a prompt keeps, wherever in a file it stands."""
    return f"{task}/{hashlib.sha256(prompt.encode()).hexdigest()[:16]}"


class ItemBank:
    """Seeded draws from an `ItemSplit`: a `CalibrationSource`, and all of a `Task` but its grading.

    Args:
        name: of the task.
        max_new_tokens: room for a full answer.
        items: what is drawn from.
        distractors_path: JSON lines with foreign prompts in the field "prompt"; None: stories and passages,
            made up by `eval.tasks.stories`.
        grading: names the way that answers are graded and its version, for the digest.
    """

    def __init__(
        self,
        name: str,
        max_new_tokens: int,
        items: ItemSplit,
        distractors_path: Path | None,
        grading: str = "",
    ) -> None:
        self.name = name
        self.max_new_tokens = max_new_tokens
        self._items = items
        self._distractors_path = distractors_path
        self._grading = grading

    @property
    def num_evaluation(self) -> int:
        return len(self._items.evaluation)

    @cached_property
    def digest(self) -> str:
        judged = [(item.item_id, item.prompt, item.reference) for item in self._items.evaluation]
        return hashlib.sha256(repr((self.name, self._grading, judged)).encode()).hexdigest()

    def calibration(self, count: int, seed: int) -> list[TaskItem]:
        return self._draw("calibration", self._items.calibration, count, seed)

    def evaluation(self, count: int, seed: int) -> list[TaskItem]:
        return self._draw("evaluation", self._items.evaluation, count, seed)

    def distractors(self, count: int, seed: int) -> list[str]:
        if self._distractors_path is None:
            return [exchange.prompt for exchange in islice(exchanges(f"distractors/{seed}"), count)]
        prompts = [record.text(DISTRACTOR_FIELD) for record in read_records(self._distractors_path)]
        if len(prompts) < count:
            raise TaskError(
                f"{self._distractors_path} has {len(prompts)} prompts, {count} were asked for: "
                "ask for fewer (--num-prompts) or give more"
            )
        return random.Random(seed).sample(prompts, count)

    def _draw(self, side: str, items: Sequence[TaskItem], count: int, seed: int) -> list[TaskItem]:
        if len(items) < count:
            raise TaskError(
                f"{self._items.source} has {len(items)} items for {side}, {count} were asked for: "
                "ask for fewer or give more"
            )
        # A whole shuffle, not a sample: fewer items are then the first of more.
        return random.Random(seed).sample(items, len(items))[:count]
