"""Grades answers, and keeps many of them under way: what every evaluation does with a `Generate` and a task.

Knows tasks and answers; where answers come from, and what is concluded from them, is for others.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from eval.generate import Answer, AnswerEnd
from eval.task import Task, TaskItem
from eval.traps import Trap, classify

T = TypeVar("T")


@dataclass(frozen=True)
class GradedAnswer:
    """What a model said to one item, whether it was right, and the trap it fell into."""

    correct: bool
    trap: Trap
    finish_reason: AnswerEnd
    prompt_tokens: int
    completion_tokens: int
    text: str


class Grader:
    """Grades off the event loop, for a task that runs code takes seconds.

    Args:
        at_once: answers that are graded at the same time; each may hold a process.
    """

    def __init__(self, task: Task, at_once: int) -> None:
        self._task = task
        self._turns = asyncio.Semaphore(at_once)

    async def grade(self, item: TaskItem, answer: Answer) -> GradedAnswer:
        async with self._turns:
            correct = await asyncio.to_thread(self._task.grade, item, answer.text)
        return GradedAnswer(
            correct=correct,
            trap=classify(answer.text, answer.finish_reason, self._task.answered),
            finish_reason=answer.finish_reason,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            text=answer.text,
        )


async def for_each(arguments: Iterable[T], work: Callable[[T], Awaitable[None]], at_once: int) -> None:
    """Awaits `work` on every argument, begun in order, `at_once` of them under way while there are so many.

    The first exception ends it: what runs is cancelled, and has ended when the exception comes out.
    """
    remaining = iter(arguments)

    async def worker() -> None:
        for argument in remaining:
            await work(argument)

    workers = [asyncio.create_task(worker()) for _ in range(at_once)]
    try:
        await asyncio.gather(*workers)
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
