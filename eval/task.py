"""What a task is: prompts to calibrate on, other prompts to be judged on, and how an answer is graded.

Knows nothing of models: a prompt is the text of one user message, an answer is the text that came back.
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class TaskItem:
    """One problem. `reference` is whatever `Task.grade` compares an answer with."""

    item_id: str
    prompt: str
    reference: str


class Task(Protocol):
    """A job that a model is judged at. Calibration and evaluation items never overlap."""

    @property
    def name(self) -> str: ...

    @property
    def max_new_tokens(self) -> int:
        """Room enough for a full answer of the dense model."""

    def calibration(self, count: int, seed: int) -> list[TaskItem]:
        """Items to measure neurons on. Raises ValueError where there are fewer than `count`."""

    def evaluation(self, count: int, seed: int) -> list[TaskItem]:
        """Held-out items. Raises ValueError where there are fewer than `count`."""

    def distractors(self, count: int, seed: int) -> list[str]:
        """User messages that have nothing to do with the task."""

    def grade(self, item: TaskItem, answer: str) -> bool:
        """Whether `answer` solves `item`."""
