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
    then drawn again at random. One that is asked and not seen goes behind the others, and is left alone after
    three times: it may be one that nobody can answer, for it does not fit the context.
    """

    def __init__(self, task: Task, seed: int) -> None:
        self._task = task
        self._seed = seed
        self._rng = random.Random(seed)
        self._chunk: list[TaskItem] = []  # of an endless task: not asked yet
        self._all: list[TaskItem] = []  # of a finite one, in random order
        self._tries: Counter[str] = Counter()  # of items that are not seen

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
        unseen = {item.item_id: item for item in self._all if not seen(item.item_id)}
        self._tries = Counter({name: self._tries[name] for name in unseen})
        given_up = {name for name, tries in self._tries.items() if tries >= MAX_TRIES}
        waiting = sorted((name for name in unseen if name not in given_up), key=self._tries.__getitem__)
        taken = waiting[:count]
        is_first_try = not any(self._tries[name] for name in taken)
        self._tries.update(taken)
        items = [unseen[name] for name in taken]
        if items and is_first_try:
            return items
        # Others beside those that failed before: a round that nobody answers means something else.
        others = [item for item in self._all if item.item_id not in given_up | set(taken)]
        if not items and not others:
            others = self._all
        return items + self._rng.sample(others, min(count - len(items), len(others)))
