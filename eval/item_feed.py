"""Which items of a task are asked next. Knows tasks and what was asked; nothing of models or verdicts."""

import random
from collections.abc import Callable

from eval.task import Task, TaskItem

ENDLESS_CHUNK_ITEMS = 64


class ItemFeed:
    """The next items to ask, one call at a time.

    Of an endless task every item is new. Those of a finite one come in a random order until all were seen,
    then drawn again at random.
    """

    def __init__(self, task: Task, seed: int) -> None:
        self._task = task
        self._seed = seed
        self._rng = random.Random(seed)
        self._chunk: list[TaskItem] = []  # of an endless task: not asked yet
        self._all: list[TaskItem] = []  # of a finite one, in random order

    def take(self, count: int, seen: Callable[[str], bool]) -> list[TaskItem]:
        """At least one item, at most `count`, no two the same."""
        return self._new(count) if self._task.num_evaluation is None else self._finite(count, seen)

    def _new(self, count: int) -> list[TaskItem]:
        if len(self._chunk) < count:
            # A seed a millisecond: a later process starts beyond all that this one can have used.
            self._chunk += self._task.evaluation(ENDLESS_CHUNK_ITEMS, self._seed)
            self._seed += 1
        taken, self._chunk = self._chunk[:count], self._chunk[count:]
        return taken

    def _finite(self, count: int, seen: Callable[[str], bool]) -> list[TaskItem]:
        if not self._all:
            assert self._task.num_evaluation, "a task has items"
            self._all = self._task.evaluation(self._task.num_evaluation, self._seed)
            self._rng.shuffle(self._all)
        unseen = [item for item in self._all if not seen(item.item_id)]
        return unseen[:count] or self._rng.sample(self._all, min(count, len(self._all)))
