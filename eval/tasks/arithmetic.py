"""The arithmetic task: generated word problems, graded by their last line ``#### N``.

The task that the embedded model math-mini is trained for. Knows nothing of models or tokens.
"""

import hashlib
import re
from decimal import Decimal
from functools import cached_property
from itertools import islice

from eval.task import TaskItem
from eval.tasks.stories import exchanges
from eval.tasks.word_problems import Split, problems

GRADING_VERSION = 1  # raise it when `grade` changes: evidence of another version is no evidence
DIGESTED_PROBLEMS = 256  # enough of the generator's output that a change of it shows
# Not \s before ####: a loop of empty lines would take a time that grows with its square.
FINAL_LINE = re.compile(r"^[^\S\n]*####\s*(-?[\d,]*\d(?:\.\d+)?)\s*$", re.MULTILINE)


class ArithmeticTask:
    """Arithmetic word problems of two to four steps, generated afresh for each seed; an `eval.task.Task`.

    The supply is endless. Calibration and evaluation never meet, whatever their seeds, nor does either meet
    what math-mini was trained on: see `eval.tasks.word_problems.split_of`.
    """

    name = "arithmetic"
    max_new_tokens = 128
    num_evaluation = None

    @cached_property
    def digest(self) -> str:
        """Of the first problems of one seed, in place of an endless supply."""
        sample = [(p.prompt, p.result) for p in islice(problems("evaluation", 0), DIGESTED_PROBLEMS)]
        return hashlib.sha256(repr((self.name, GRADING_VERSION, sample)).encode()).hexdigest()

    def calibration(self, count: int, seed: int) -> list[TaskItem]:
        return self._items("calibration", count, seed)

    def evaluation(self, count: int, seed: int) -> list[TaskItem]:
        return self._items("evaluation", count, seed)

    def distractors(self, count: int, seed: int) -> list[str]:
        """Requests for stories, and questions about short passages."""
        return [exchange.prompt for exchange in islice(exchanges(f"distractors/{seed}"), count)]

    def grade(self, item: TaskItem, answer: str) -> bool:
        """Whether the last line ``#### N`` of `answer` gives the number in `item.reference`."""
        found = FINAL_LINE.findall(answer)
        return bool(found) and Decimal(found[-1].replace(",", "")) == Decimal(item.reference)

    def answered(self, answer: str) -> bool:
        """Whether there is a whole line ``#### N``."""
        return FINAL_LINE.search(answer) is not None

    def _items(self, split: Split, count: int, seed: int) -> list[TaskItem]:
        return [
            TaskItem(f"{self.name}/{split}/{seed}/{i}", problem.prompt, str(problem.result))
            for i, problem in enumerate(islice(problems(split, seed), count))
        ]
