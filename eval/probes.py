"""Gives every variant the same held-out items as the dense reference, at a pace, and keeps verdicts on them.

Runs on the event loop. Knows models only through `Generate`, and nothing of engines or servers.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from eval.budget import ProbeBudget
from eval.evidence import KEPT_CHANGES, Entry, EvidenceKey, EvidenceStore, Record
from eval.generate import Generate
from eval.guard import Guard, GuardEvidence
from eval.item_feed import ItemFeed
from eval.judge import Judge
from eval.task import Task, TaskItem
from eval.traps import Trap, classify
from eval.verdicts import Criterion, Evidence, Outcome, Verdict, VerdictChange
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


OnVerdict = Callable[[str, Verdict, Verdict, Evidence], None]  # variant, before, after, its grounds


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
        self._store = store
        self._budget = budget
        self._identity = identity
        self._criterion = criterion
        self._on_verdict = on_verdict
        self._guard = guard
        self._wall_clock = wall_clock
        self._sleep = sleep
        self._feed = ItemFeed(task, seed=int(1000 * wall_clock()))
        self._files: dict[EvidenceKey, _File] = {}
        self._turn = asyncio.Lock()  # one round at a time, be it of `run` or of `run_now`
        self._running_now = False
        self._places = asyncio.Semaphore(at_once)
        self._tokens, self._answers = 0, 0

    def load(self) -> None:
        """Reads what is known of the subjects from the store. Blocks: for the start, before anything runs."""
        keys = self._keys(self._pairs(self._subjects()))
        for key in keys:
            self._files.setdefault(key, self._read(key))
        if self._guard is not None:
            self._guard.load(keys)

    async def refresh(self) -> None:
        """The same while rounds go on, for subjects that came later."""
        keys = self._keys(self._pairs(self._subjects()))
        await self._open(keys)
        if self._guard is not None:
            await self._guard.refresh(keys)

    def evidence(self, variant: str) -> Evidence | None:
        """What is known of a variant that is served; None of one that is not, or not loaded yet."""
        file = self._find(variant)
        return file.judge.evidence() if file else None

    def changes(self, variant: str) -> tuple[VerdictChange, ...]:
        """The last changes of its verdict, oldest first, those before a restart among them."""
        file = self._find(variant)
        return tuple(file.changes) if file else ()

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
            files = await self._open(self._keys(pairs))
            seen_by = [file.judge.has_seen for file in files]
            items = await asyncio.to_thread(
                self._feed.take, count, lambda item_id: all(has_seen(item_id) for has_seen in seen_by)
            )
            asked = [(item, subject) for item in items for subject, _ in pairs]
            answers = await asyncio.gather(*(self._ask(*question, spend) for question in asked))
            replies = dict(zip(asked, answers, strict=True))
            # One that was replaced meanwhile may have answered in another's name.
            pairs = self._pairs([subject for subject in subjects if subject in self._subjects()])
            files = await self._reread(pairs)
            # In the order of the items, not of the answers: wrong ones tend to take longer, and a test that
            # is looked at all the time must not see the right ones first.
            for item in items:
                self._feed.answered(item.item_id, by_all=all(replies[item, subject] for subject, _ in pairs))
            entries = []
            for (subject, reference), file in zip(pairs, files, strict=True):
                both = [(item, replies[item, subject], replies[item, reference]) for item in items]
                outcomes = [
                    Outcome(item.item_id, self._wall_clock(), mine.correct, dense.correct, mine.trap)
                    for item, mine, dense in both
                    if mine and dense
                ]
                if outcomes or file.unwritten:
                    entries.append(self._judge(subject, file, outcomes))
            await asyncio.to_thread(self._store.append, entries)
            if entries and self._guard is not None and self._guard.is_due(self._tokens):
                reference = pairs[0][1]
                held_to_it = {s.name: self._key(s, reference) for s, _ in pairs if s != reference}
                if held_to_it:
                    await self._guard.ask(held_to_it, reference.name, spend)
        return len(items) if any(answers) else 0

    def _judge(self, subject: Subject, file: "_File", outcomes: Sequence[Outcome]) -> Entry:
        had_something_to_lose = file.judge.evidence().nothing_to_lose is None
        changes = [*file.unwritten, *self._push(subject.name, file, outcomes)]
        file.unwritten.clear()
        reason = file.judge.evidence().nothing_to_lose
        if had_something_to_lose and reason is not None:
            logger.warning("%s cannot be shown to be safe by %s: %s", subject.name, self._task.name, reason)
        return Entry(file.key, file.judge.base, file.judge.num_kept, outcomes, changes)

    def _push(self, variant: str, file: "_File", outcomes: Sequence[Outcome]) -> list[VerdictChange]:
        changes = [change for outcome in outcomes if (change := file.judge.push(outcome))]
        for change in changes:
            self._report(variant, file, change)
        return changes

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

    def _report(self, variant: str, file: "_File", change: VerdictChange) -> None:
        file.changes.append(change)
        found = change.evidence
        logger.warning(
            "%s is %s now, it was %s: of %d items of %s it solved %.1f%%, %.1f points below the reference",
            variant,
            change.after.value,
            change.before.value,
            found.items,
            self._task.name,
            100 * (found.accuracy or 0),
            100 * (found.drop or 0),
        )
        self._on_verdict(variant, change.before, change.after, found)

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

    def _find(self, variant: str) -> "_File | None":
        key = self._key_of(variant)
        return self._files.get(key) if key else None

    async def _open(self, keys: Sequence[EvidenceKey]) -> "list[_File]":
        """One file for each key. Read on a thread; but only the event loop says which file is a key's.

        Else who reads beside a round could put what the store held before it in the place of what it found.
        """
        new = [key for key in keys if key not in self._files]
        for file in await asyncio.to_thread(lambda: [self._read(key) for key in new]):
            self._files.setdefault(file.key, file)
        return [self._files[key] for key in keys]

    async def _reread(self, pairs: Sequence[tuple[Subject, Subject]]) -> "list[_File]":
        """Their files, with what other processes that share the store have found since."""
        files = await self._open(self._keys(pairs))
        found = await asyncio.to_thread(lambda: [self._news(file) for file in files])
        for (subject, _), file, news in zip(pairs, files, found, strict=True):
            if isinstance(news, _File):
                self._take_over(subject.name, file.judge.verdict, news)
            else:
                file.unwritten.extend(self._push(subject.name, file, news))
        return [self._files[file.key] for file in files]

    def _news(self, file: "_File") -> "Sequence[Outcome] | _File":
        """What others have added, or all there is where that is not enough."""
        added = self._store.news(file.key)
        if added is not None:
            return added
        record = self._store.reread(file.key)
        return () if record is None else _File.of(file.key, record, self._criterion)

    def _take_over(self, variant: str, before: Verdict, file: "_File") -> None:
        self._files[file.key] = file
        after = file.judge.verdict
        if after is not before:
            logger.warning("%s is %s now, by what another process has found", variant, after.value)
            self._on_verdict(variant, before, after, file.judge.evidence())

    def _read(self, key: EvidenceKey) -> "_File":
        return _File.of(key, self._store.read(key), self._criterion)


@dataclass(frozen=True)
class _Reply:
    correct: bool
    trap: Trap


@dataclass(frozen=True)
class _File:
    """What is known of one key.

    Attributes:
        changes: the last of its verdict.
        unwritten: those that followed from what others had added, and that nobody may have written yet.
    """

    key: EvidenceKey
    judge: Judge
    changes: deque[VerdictChange]
    unwritten: list[VerdictChange] = field(default_factory=list)

    @classmethod
    def of(cls, key: EvidenceKey, record: Record, criterion: Criterion) -> "_File":
        """By judging the stored outcomes again; with another criterion the verdict may be another."""
        judge = Judge(criterion, verdict=record.base, is_reference=key.is_reference)
        for outcome in record.outcomes:
            judge.push(outcome)
        if record.changes and record.changes[-1].after is judge.verdict:
            judge.resume(record.changes[-1].at)
        return cls(key, judge, deque(record.changes, maxlen=KEPT_CHANGES))
