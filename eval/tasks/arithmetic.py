"""The arithmetic task: generated word problems, graded by their last line ``#### N``.

The task that the embedded model math-mini is trained for. Knows nothing of models or tokens.
"""

import re
from decimal import Decimal
from itertools import islice

from eval.task import TaskItem
from eval.tasks.stories import exchanges
from eval.tasks.word_problems import Split, problems

FINAL_LINE = re.compile(r"^\s*####\s*(-?[\d,]*\d(?:\.\d+)?)\s*$", re.MULTILINE)


class ArithmeticTask:
    """Arithmetic word problems of two to four steps, generated afresh for each seed; an `eval.task.Task`.

    The supply is endless. Calibration and evaluation never meet, whatever their seeds, nor does either meet
    what math-mini was trained on: see `eval.tasks.word_problems.split_of`.
    """

    name = "arithmetic"
    max_new_tokens = 128

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

    def _items(self, split: Split, count: int, seed: int) -> list[TaskItem]:
        return [
            TaskItem(f"{self.name}/{split}/{seed}/{i}", problem.prompt, str(problem.result))
            for i, problem in enumerate(islice(problems(split, seed), count))
        ]
