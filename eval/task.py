"""What a task is: prompts to calibrate on, other prompts to be judged on, and how an answer is graded.

Knows nothing of models: a prompt is the text of one user message, an answer is the text that came back.
"""

from dataclasses import dataclass
from typing import Protocol

from pruning.errors import SecateurError


class TaskError(SecateurError):
    """A task is unknown, lacks what it needs, or its items cannot be read."""


@dataclass(frozen=True)
class TaskItem:
    """One problem. `reference` is whatever `Task.grade` compares an answer with."""

    item_id: str
    prompt: str
    reference: str


class CalibrationSource(Protocol):
    """The part of a `Task` that neurons are measured on."""

    @property
    def name(self) -> str: ...

    @property
    def max_new_tokens(self) -> int:
        """Room enough for a full answer of the dense model."""

    def calibration(self, count: int, seed: int) -> list[TaskItem]:
        """Items to measure neurons on. Raises TaskError where there are fewer than `count`."""

    def distractors(self, count: int, seed: int) -> list[str]:
        """User messages that have nothing to do with the task. Raises TaskError likewise."""


class Task(CalibrationSource, Protocol):
    """A job that a model is judged at. Calibration and evaluation items never overlap.

    For one seed, fewer items are the first of more. All methods may be called from any thread.
    """

    @property
    def num_evaluation(self) -> int | None:
        """How many held-out items there are; None: as many as one likes."""

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of what evaluation draws from and how it is graded, part of evidence's keys."""

    def evaluation(self, count: int, seed: int) -> list[TaskItem]:
        """Held-out items. Raises TaskError where there are fewer than `count`."""

    def grade(self, item: TaskItem, answer: str) -> bool:
        """Whether `answer` solves `item`. May take seconds where code is run."""

    def answered(self, answer: str) -> bool:
        """Whether the text holds a complete answer, right or wrong: what follows it is not needed."""
