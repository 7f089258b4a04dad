"""A task and a model that cost nothing; their answers, and what a study of them finds, are known beforehand.

They stand for what a real server or engine brings; tests/integration has those.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from eval.generate import Answer, GenerateError
from eval.subject import Strategy, VariantFacts
from eval.task import TaskItem


class ParityTask:
    """Items are numbers; "yes" is right for all. A "!" ends an answer."""

    name = "parity"
    max_new_tokens = 8
    num_evaluation = None

    def __init__(self, digest: str = "d" * 64) -> None:
        self.digest = digest

    def calibration(self, count: int, seed: int) -> list[TaskItem]:
        return self.evaluation(count, seed)

    def distractors(self, count: int, seed: int) -> list[str]:
        return ["?"] * count

    def evaluation(self, count: int, seed: int) -> list[TaskItem]:
        return [TaskItem(f"{seed}/{i}", str(i), "yes") for i in range(count)]

    def grade(self, item: TaskItem, answer: str) -> bool:
        return answer == item.reference

    def answered(self, answer: str) -> bool:
        return "!" in answer


def right_for(share: float) -> Callable[[int], bool]:
    """Right for this share of the items, the same ones for every variant as far as they go."""
    return lambda number: (7 * number) % 100 < 100 * share


@dataclass
class FakeSubject:
    """A strategy whose accuracy at each sparsity is given. It dies after `lives` answers."""

    strategy: Strategy
    accuracy: dict[float, float]
    lives: int = 10**9
    speed: float | None = None
    rounds: int = 0
    loads: int = 0
    asked: list[tuple[float, str]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0

    @property
    def sparsities(self) -> tuple[float, ...]:
        return tuple(sorted(self.accuracy))

    @property
    def generate(self) -> "FakeSubject":
        return self

    def identity(self, sparsity: float) -> dict[str, object]:
        return {"strategy": self.strategy.name if sparsity else "dense", "accuracy": self.accuracy[sparsity]}

    def facts(self, sparsity: float) -> VariantFacts:
        return VariantFacts(f"m:s{100 * sparsity:g}", sparsity, round(1000 * (1 - sparsity)), 2000)

    async def tokens_per_second(
        self, sparsity: float, prompts: Sequence[str], max_tokens: int
    ) -> float | None:
        if self.speed is None:
            return None
        self.rounds += 1
        return self.speed / (1 - sparsity) * (1, 0.5, 50)[self.rounds % 3]  # rounds differ

    @asynccontextmanager
    async def open(self) -> AsyncIterator["FakeSubject"]:
        self.loads += 1
        yield self

    async def __call__(self, prompt: str, *, variant: str, max_tokens: int) -> Answer:
        sparsity = float(variant.removeprefix("m:s")) / 100
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        if self.lives == 0:
            raise GenerateError("it is gone")
        self.lives -= 1
        self.asked.append((sparsity, prompt))
        right = right_for(self.accuracy[sparsity])(int(prompt))
        return Answer("yes" if right else "no", "stop" if right else "loop", 3, 5)
