"""A prober and all it works with: made-up numbered items, and a `Generate` that answers as it is told."""

import asyncio
import itertools
import random
from collections import Counter

import pytest

from eval.generate import Answer, GenerateError
from eval.probing.evidence_store import EvidenceStore
from eval.probing.prober import Identity, Prober, Subject
from eval.probing.verdicts import Criterion
from eval.task import TaskItem

DENSE, S10, S20 = (Subject(f"m:s{s}", s / 100, (100 - s,)) for s in (0, 10, 20))


class NumbersTask:
    name = "numbers"
    max_new_tokens = 50
    digest = "numbers/1"

    def __init__(self, num_evaluation=None):
        self.num_evaluation = num_evaluation

    def evaluation(self, count, seed):
        ids = range(count) if self.num_evaluation else range(seed * 64, seed * 64 + count)
        return [TaskItem(f"{n}", f"item {n}", "yes") for n in ids]

    def grade(self, item, answer):
        return answer == item.reference

    def answered(self, answer):
        return False


class Model:
    """Answers right but for the share in `wrong`, by name of variant; `broken` ones do not answer."""

    def __init__(self):
        self.wrong, self.broken, self.asked = {}, set(), []
        self.finish_reason = "stop"

    async def __call__(self, prompt, *, variant, max_tokens):
        self.asked.append((prompt, variant))
        rng = random.Random(f"{prompt}/{variant}")
        for _ in range(rng.randrange(4)):  # answers come in any order
            await asyncio.sleep(0)
        if variant in self.broken:
            raise GenerateError("the engine is dead")
        wrong = rng.random() < self.wrong.get(variant, 0.0)
        return Answer("no" if wrong else "yes", self.finish_reason, prompt_tokens=6, completion_tokens=4)

    def by_variant(self):
        return Counter(variant for _, variant in self.asked)


class Purse:
    """A budget that lasts for `tokens`, and then stops whoever waits for more."""

    def __init__(self, tokens):
        self.tokens, self.spent = tokens, 0

    def available(self):
        return self.tokens - self.spent

    def spend(self, tokens):
        self.spent += tokens


class SpentError(Exception):
    """Nothing more would happen: the budget is empty, or nobody answers."""


class World:
    """A prober and all that it works with."""

    def __init__(
        self,
        tokens=0,
        task=None,
        store=None,
        subjects=(DENSE, S10, S20),
        identity="ranking",
        guard=None,
        tolerance=0.03,
        at_once=32,
    ):
        self.subjects, self.model, self.purse = list(subjects), Model(), Purse(tokens)
        self.store, self.pauses, self.verdicts = store or EvidenceStore(None), [], []
        self.patience = 1  # pauses until it is enough
        ticks = itertools.count(1_000)
        self.prober = Prober(
            task or NumbersTask(),
            self.model,
            lambda: self.subjects,
            self.store,
            self.purse,
            identity=Identity("model", identity, "float32"),
            criterion=Criterion(tolerance),
            on_verdict=lambda *change: self.verdicts.append(change),
            guard=guard,
            at_once=at_once,
            wall_clock=lambda: float(next(ticks)),
            sleep=self._sleep,
        )

    async def _sleep(self, seconds):
        self.pauses.append(seconds)
        if len(self.pauses) >= self.patience:
            raise SpentError

    def run(self, tokens=0):
        self.purse.tokens += tokens
        self.pauses.clear()
        with pytest.raises(SpentError):
            asyncio.run(self.prober.run())

    def run_now(self, *args, **kwargs):
        return asyncio.run(self.prober.run_now(*args, **kwargs))
