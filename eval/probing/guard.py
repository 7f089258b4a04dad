"""Watches how far variants stray from the dense reference on prompts that have nothing to do with the task.

Success at a task may be bought with everything else, and the task's own items do not see that. Here the
reference answers such a prompt, and each variant says how likely it finds the same tokens: no labels, and no
verdict (docs/decisions/009). Runs on the event loop; knows models only through `Compare`. When its turn comes
is the prober's business.
"""

import asyncio
import hashlib
import json
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from eval.generate import GenerateError
from eval.probing.evidence import EvidenceKey, GuardAnswer
from eval.probing.evidence_rows import KEPT_GUARD_ANSWERS
from eval.probing.evidence_store import EvidenceStore
from eval.task import CalibrationSource, TaskError
from eval.tasks.records import read_records

logger = logging.getLogger(__name__)

SHARE = 0.1  # of the tokens that probes spend
MAX_TOKENS = 64  # of an answer
NUM_PROMPTS = 64  # of the task's distractors
SEED = 1  # another draw than that of neurons by default; of 800 prompts some ten are in both
PROMPT_FIELD = "prompt"


@dataclass(frozen=True)
class Likeness:
    """One answer of the reference, as a variant sees it.

    Attributes:
        tokens: of the answer.
        agreements: those that the variant finds likeliest as well.
        kl_nats: sum over them of the divergence KL(reference || variant).
    """

    tokens: int
    agreements: int
    kl_nats: float


@dataclass(frozen=True)
class Compared:
    """What became of one guard prompt.

    Attributes:
        tokens_spent: by the reference and all variants.
        likeness: by variant; without those that could not be asked.
    """

    tokens_spent: int
    likeness: Mapping[str, Likeness]


class Compare(Protocol):
    """Has the reference answer one user message greedily, and the variants score its answer."""

    async def __call__(
        self, prompt: str, *, reference: str, variants: Sequence[str], max_tokens: int
    ) -> Compared:
        """Raises GenerateError where the reference gave no answer."""


@dataclass(frozen=True)
class GuardEvidence:
    """How a variant did on the last answers, 256 at most.

    Attributes:
        agreement: share of the tokens that the variant finds likeliest as the reference does.
        kl_nats: mean divergence KL(reference || variant), a token.
        updated_at: when the last answer came, in seconds since the epoch.
    """

    answers: int
    tokens: int
    agreement: float
    kl_nats: float
    updated_at: float


class Guard:
    """Asks one prompt after another, in a random order, again and again.

    Args:
        prompts: general ones, at least one.
        store: where answers are kept, under keys of their own.
        wall_clock: seconds since the epoch; dates answers, and seeds the order.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        compare: Compare,
        store: EvidenceStore,
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        assert prompts
        self.prompts = tuple(prompts)
        self._compare = compare
        self._store = store
        self._wall_clock = wall_clock
        self._rng = random.Random(int(1000 * wall_clock()))
        self._waiting: list[str] = []
        self._name = f"guard/{hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()}"
        self._answers: dict[EvidenceKey, deque[GuardAnswer]] = {}
        self._tokens_spent = 0

    def is_due(self, tokens_of_items: int) -> bool:
        """Whether less than its share was spent, beside so many tokens of the task's items."""
        return self._tokens_spent < SHARE * (self._tokens_spent + tokens_of_items)

    def evidence(self, key: EvidenceKey) -> GuardEvidence | None:
        """What is known of a variant, by its key as the prober has it; None before its first answer."""
        answers = self._answers.get(self._own(key))
        if not answers:
            return None
        tokens = sum(answer.tokens for answer in answers)
        return GuardEvidence(
            answers=len(answers),
            tokens=tokens,
            agreement=sum(answer.agreements for answer in answers) / tokens,
            kl_nats=sum(answer.kl_nats for answer in answers) / tokens,
            updated_at=answers[-1].at,
        )

    def load(self, keys: Iterable[EvidenceKey]) -> None:
        """Reads what is kept. Blocks: for the start, before anything runs."""
        for key in map(self._own, keys):
            self._answers.setdefault(key, self._read(key))

    async def refresh(self, keys: Iterable[EvidenceKey]) -> None:
        """The same while the event loop runs; only the loop says what is known of a key."""
        new = [key for key in map(self._own, keys) if key not in self._answers]
        found = await asyncio.to_thread(lambda: [(key, self._read(key)) for key in new])
        for key, answers in found:
            self._answers.setdefault(key, answers)

    async def ask(
        self, variants: Mapping[str, EvidenceKey], reference: str, spend: Callable[[int], None]
    ) -> None:
        """Has every variant score the reference's answer to the next prompt; what fails is left out."""
        await self.refresh(variants.values())
        try:
            compared = await self._compare(
                self._next(), reference=reference, variants=list(variants), max_tokens=MAX_TOKENS
            )
        except GenerateError as error:
            logger.debug("a guard prompt was not answered: %s", error)
            return
        spend(compared.tokens_spent)
        self._tokens_spent += compared.tokens_spent
        entries = []
        for name, found in compared.likeness.items():
            key = self._own(variants[name])
            answer = GuardAnswer(self._wall_clock(), found.tokens, found.agreements, found.kl_nats)
            self._answers[key].append(answer)
            entries.append((key, answer))
        await asyncio.to_thread(self._store.append_guard, entries)

    def _next(self) -> str:
        if not self._waiting:
            self._waiting = self._rng.sample(self.prompts, len(self.prompts))
        return self._waiting.pop()

    def _own(self, key: EvidenceKey) -> EvidenceKey:
        """Another task's key: with other prompts the numbers are others."""
        return replace(key, task=self._name)

    def _read(self, key: EvidenceKey) -> deque[GuardAnswer]:
        return deque(self._store.read_guard(key), maxlen=KEPT_GUARD_ANSWERS)


def guard_prompts(path: Path | None, task: CalibrationSource) -> list[str]:
    """Those in a JSON lines file, field "prompt"; without one, some of the task's distractors.

    Raises:
        TaskError: they cannot be read, or there are none.
    """
    if path is None:
        return list(dict.fromkeys(task.distractors(NUM_PROMPTS, SEED)))
    prompts = [record.text(PROMPT_FIELD) for record in read_records(path)]
    if not prompts:
        raise TaskError(f"{path} is empty: give guard prompts, one JSON object with {PROMPT_FIELD!r} a line")
    return prompts
