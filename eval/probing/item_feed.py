"""Which items of a task are asked next. Knows tasks and what was asked; nothing of models or verdicts."""

import random
from collections import Counter
from collections.abc import Callable

from eval.task import Task, TaskItem

ENDLESS_CHUNK_ITEMS = 64
MAX_TRIES = 3  # of an item to which no answer came


class ItemFeed:
    """The next items to ask, one call at a time.

    Of an endless task every item is new. Those of a finite one come in a random order until all were seen,
    then drawn again at random. One that fails goes behind the others, and is left alone after three times: it
    may be one that nobody can answer, for it does not fit the context.
    """

    def __init__(self, task: Task, seed: int) -> None:
        self._task = task
        self._seed = seed
        self._rng = random.Random(seed)
        self._chunk: list[TaskItem] = []  # of an endless task: not asked yet
        self._all: list[TaskItem] = []  # of a finite one, in random order
        self._failures: Counter[str] = Counter()

    def take(self, count: int, seen: Callable[[str], bool]) -> list[TaskItem]:
        """At least one item, at most `count`, no two the same."""
        return self._new(count) if self._task.num_evaluation is None else self._finite(count, seen)

    def answered(self, item_id: str, *, by_all: bool) -> None:
        """It was asked, and everybody gave an answer, or not."""
        if by_all:
            del self._failures[item_id]
        else:
            self._failures[item_id] += 1

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
        unseen = {item.item_id: item for item in self._all if not seen(item.item_id)}
        fresh = [item for name, item in unseen.items() if not self._failures[name]]
        if fresh:
            return fresh[:count]
        # What failed comes beside others: a round that nobody answers means something else.
        failed = [name for name in unseen if self._failures[name] < MAX_TRIES]
        some = count // 2 or self._rng.getrandbits(1)
        again = sorted(failed, key=self._failures.__getitem__)[:some]
        others = [item for item in self._all if item.item_id not in unseen] or self._all
        taken = self._rng.sample(others, min(count - len(again), len(others)))
        return [*(unseen[name] for name in again), *(item for item in taken if item.item_id not in again)]
