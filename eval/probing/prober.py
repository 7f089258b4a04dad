"""Gives every variant the same held-out items as the dense reference, at a pace, and keeps verdicts on them.

Runs on the event loop. Knows models only through `Generate`, and nothing of engines or servers.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from eval.generate import Generate
from eval.probing.budget import ProbeBudget
from eval.probing.evidence import EvidenceKey
from eval.probing.evidence_store import EvidenceStore
from eval.probing.guard import Guard, GuardEvidence
from eval.probing.item_feed import ItemFeed
from eval.probing.ledger import Account, Ledger, OnVerdict
from eval.probing.verdicts import Criterion, Evidence, Outcome, VerdictChange
from eval.task import Task, TaskItem
from eval.traps import Trap, classify
from pruning.errors import SecateurError

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.25  # between two looks at a budget that was empty
MAX_PAUSE_SECONDS = 60.0  # between two rounds that nobody answers
MAX_ROUND_ITEMS = 8  # asked at once
MAX_RUN_ITEMS = 1_000
MAX_SILENT_ROUNDS = 4  # of a run: it may come to items that nobody can answer


class ProbeError(SecateurError):
    """A run of probes was asked for that cannot be had."""


@dataclass(frozen=True)
class Subject:
    """A variant that is served. The first of least sparsity is the reference of the others.

    Attributes:
        delta: digest of what corrects it, "" for nothing.
    """

    name: str
    sparsity: float
    widths: tuple[int, ...]
    delta: str = ""


@dataclass(frozen=True)
class Identity:
    """What all variants have in common that answers depend on; see `EvidenceKey`."""

    model: str
    ranking: str
    computation: str


class Prober:
    """Probes the variants that are served, whichever those are at the moment.

    In a round every subject answers the same items; each answer and the reference's make an `Outcome`. An
    answer that cannot be had, because the engine died or the variant went, is no outcome, never a wrong
    answer. Of an endless task every item is new. The items of a finite one are asked in a random order until
    every subject has answered all, then drawn again at random: see `Evidence.repeats`.

    Args:
        subjects: those served now; asked before each round.
        store: where outcomes are kept. Only the prober writes to it.
        budget: what `run` may spend; `run_now` does not ask it.
        on_verdict: called on the event loop, once for each change.
        guard: asked between rounds, for a share of what they cost.
        at_once: questions that are asked at the same time, at most; more would find no place.
        wall_clock: seconds since the epoch; dates outcomes, and seeds the choice of items.
    """

    def __init__(
        self,
        task: Task,
        generate: Generate,
        subjects: Callable[[], Sequence[Subject]],
        store: EvidenceStore,
        budget: ProbeBudget,
        *,
        identity: Identity,
        criterion: Criterion,
        on_verdict: OnVerdict,
        guard: Guard | None = None,
        at_once: int = 32,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._task = task
        self._generate = generate
        self._subjects = subjects
        self._budget = budget
        self._identity = identity
        self._criterion = criterion
        self._guard = guard
        self._wall_clock = wall_clock
        self._sleep = sleep
        self._feed = ItemFeed(task, seed=int(1000 * wall_clock()))
        self._ledger = Ledger(store, criterion, task_name=task.name, on_verdict=on_verdict)
        self._turn = asyncio.Lock()  # one round at a time, be it of `run` or of `run_now`
        self._running_now = False
        self._places = asyncio.Semaphore(at_once)
        self._tokens, self._answers = 0, 0

    def load(self) -> None:
        """Reads what is known of the subjects from the store. Blocks: for the start, before anything runs."""
        keys = self._keys(self._pairs(self._subjects()))
        self._ledger.load(keys)
        if self._guard is not None:
            self._guard.load(keys)

    async def refresh(self) -> None:
        """The same while rounds go on, for subjects that came later."""
        keys = self._keys(self._pairs(self._subjects()))
        await self._ledger.open(keys)
        if self._guard is not None:
            await self._guard.refresh(keys)

    def evidence(self, variant: str) -> Evidence | None:
        """What is known of a variant that is served; None of one that is not, or not loaded yet."""
        account = self._find(variant)
        return account.judge.evidence() if account else None

    def changes(self, variant: str) -> tuple[VerdictChange, ...]:
        """The last changes of its verdict, oldest first, those before a restart among them."""
        account = self._find(variant)
        return tuple(account.changes) if account else ()

    def guard_evidence(self, variant: str) -> GuardEvidence | None:
        """How near it is to the reference on general prompts; None where nobody has looked yet."""
        key = self._key_of(variant)
        return self._guard.evidence(key) if self._guard and key else None

    async def run(self) -> None:
        """Probes for as long as it is not cancelled, and the budget lasts."""
        silent_rounds = 0
        while True:
            subjects = list(self._subjects())
            if not subjects or self._budget.available() <= 0:
                await self._sleep(POLL_SECONDS)
                continue
            heard = await self._round(subjects, self._affordable_items(len(subjects)), self._budget.spend)
            silent_rounds = 0 if heard else silent_rounds + 1
            if silent_rounds:
                if silent_rounds == 1:
                    logger.warning("no probe was answered; probing goes on at growing intervals")
                await self._sleep(min(POLL_SECONDS * 2**silent_rounds, MAX_PAUSE_SECONDS))

    async def run_now(
        self,
        variants: Sequence[str] | None = None,
        items: int = 100,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, Evidence]:
        """Probes some variants (None: all) with so many items at once, whatever the budget.

        Args:
            on_progress: called after each round with the items done and to do.

        Returns:
            The evidence about each of them afterwards, what was known before included.

        Raises:
            ProbeError: a variant is not served, the number of items is out of range, another run is not
                done, or nobody answers.
        """
        self._check_run(variants, items)
        self._running_now = True
        try:
            done, silent_rounds = 0, 0
            while done < items:
                subjects = self._chosen(variants)
                count = min(MAX_ROUND_ITEMS, items - done)
                asked = await self._round(subjects, count, lambda tokens: None)
                silent_rounds = 0 if asked else silent_rounds + 1
                if silent_rounds == MAX_SILENT_ROUNDS:
                    raise ProbeError(f"no answer could be had after {done} of {items} items; see the log")
                done += asked
                on_progress(done, items)
        finally:
            self._running_now = False
        names = [subject.name for subject in self._subjects()] if variants is None else variants
        return {name: evidence for name in names if (evidence := self.evidence(name))}

    def _check_run(self, variants: Sequence[str] | None, items: int) -> None:
        if not 1 <= items <= MAX_RUN_ITEMS:
            raise ProbeError(f"{items} items were asked for; a run takes 1 to {MAX_RUN_ITEMS:,}")
        if self._running_now:
            raise ProbeError("a run of probes is going on already: wait for its end")
        names = [subject.name for subject in self._subjects()]
        for name in variants or ():
            if name not in names:
                raise ProbeError(f"there is no variant {name!r} to probe; there are {', '.join(names)}")

    def _chosen(self, variants: Sequence[str] | None) -> list[Subject]:
        """The subjects of a run that are still there, with their reference."""
        pairs = self._pairs(self._subjects())
        chosen = [(s, reference) for s, reference in pairs if variants is None or s.name in variants]
        return list(dict.fromkeys([*(reference for _, reference in chosen), *(s for s, _ in chosen)]))

    def _affordable_items(self, num_subjects: int) -> int:
        cost = num_subjects * (self._tokens / self._answers if self._answers else self._task.max_new_tokens)
        return max(1, min(MAX_ROUND_ITEMS, int(self._budget.available() / max(cost, 1))))

    async def _round(self, subjects: Sequence[Subject], count: int, spend: Callable[[int], None]) -> int:
        """Asks `subjects`, their reference among them, `count` items at once, fewer where those run out.

        Returns how many they were; 0 where nobody answered.
        """
        pairs = self._pairs(subjects)
        async with self._turn:
            accounts = await self._ledger.open(self._keys(pairs))
            seen_by = [account.judge.has_seen for account in accounts]
            items = await asyncio.to_thread(
                self._feed.take, count, lambda item_id: all(has_seen(item_id) for has_seen in seen_by)
            )
            asked = [(item, subject) for item in items for subject, _ in pairs]
            answers = await asyncio.gather(*(self._ask(*question, spend) for question in asked))
            replies = dict(zip(asked, answers, strict=True))
            # One that was replaced meanwhile may have answered in another's name.
            pairs = self._pairs([subject for subject in subjects if subject in self._subjects()])
            keys = {s.name: self._key(s, reference) for s, reference in pairs}
            known = await self._ledger.catch_up(keys)
            # In the order of the items, not of the answers: wrong ones tend to take longer, and a test that
            # is looked at all the time must not see the right ones first.
            for item in items:
                self._feed.answered(item.item_id, by_all=all(replies[item, subject] for subject, _ in pairs))
            new = {}
            for subject, reference in pairs:
                both = [(item, replies[item, subject], replies[item, reference]) for item in items]
                outcomes = [
                    Outcome(item.item_id, self._wall_clock(), mine.correct, dense.correct, mine.trap)
                    for item, mine, dense in both
                    if mine and dense
                ]
                if outcomes or known[subject.name].unwritten:
                    new[subject.name] = known[subject.name], outcomes
            await self._ledger.add(new)
            if new and self._guard is not None and self._guard.is_due(self._tokens):
                reference = pairs[0][1]
                held_to_it = {name: key for name, key in keys.items() if name != reference.name}
                if held_to_it:
                    await self._guard.ask(held_to_it, reference.name, spend)
        return len(items) if any(answers) else 0

    async def _ask(self, item: TaskItem, subject: Subject, spend: Callable[[int], None]) -> "_Reply | None":
        try:
            async with self._places:
                answer = await self._generate(
                    item.prompt, variant=subject.name, max_tokens=self._task.max_new_tokens
                )
            tokens = answer.prompt_tokens + answer.completion_tokens
            spend(tokens)
            self._tokens += tokens
            self._answers += 1
            correct = await asyncio.to_thread(self._task.grade, item, answer.text)
        except SecateurError as error:
            logger.debug("no outcome of %s for %s: %s", item.item_id, subject.name, error)
            return None
        return _Reply(correct, classify(answer.text, answer.finish_reason, self._task.answered))

    def _pairs(self, subjects: Sequence[Subject]) -> list[tuple[Subject, Subject]]:
        """Each subject with its reference."""
        reference = min(subjects, key=lambda subject: subject.sparsity, default=None)
        return [(subject, reference) for subject in subjects if reference is not None]

    def _key(self, subject: Subject, reference: Subject) -> EvidenceKey:
        return EvidenceKey(
            model=self._identity.model,
            ranking=self._identity.ranking,
            computation=f"{self._identity.computation}, {self._criterion.name}",
            task=self._task.digest,
            widths=subject.widths,
            reference_widths=reference.widths,
            delta=subject.delta,
            reference_delta=reference.delta,
        )

    def _keys(self, pairs: Sequence[tuple[Subject, Subject]]) -> list[EvidenceKey]:
        return [self._key(*pair) for pair in pairs]

    def _key_of(self, variant: str) -> EvidenceKey | None:
        pairs = self._pairs(self._subjects())
        return next((self._key(*pair) for pair in pairs if pair[0].name == variant), None)

    def _find(self, variant: str) -> Account | None:
        key = self._key_of(variant)
        return self._ledger.get(key) if key else None


@dataclass(frozen=True)
class _Reply:
    correct: bool
    trap: Trap
