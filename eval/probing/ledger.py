"""What is known of every variant: outcomes judged as they come, kept in the store, and held to what other
processes that share it have found. Runs on the event loop; knows keys and names, and asks no model.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from eval.probing.evidence import Entry, EvidenceKey, Record
from eval.probing.evidence_rows import KEPT_CHANGES
from eval.probing.evidence_store import EvidenceStore
from eval.probing.judge import Judge
from eval.probing.verdicts import Criterion, Evidence, Outcome, Verdict, VerdictChange

logger = logging.getLogger(__name__)

OnVerdict = Callable[[str, Verdict, Verdict, Evidence], None]  # variant, before, after, its grounds


@dataclass(frozen=True)
class Account:
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
    def of(cls, key: EvidenceKey, record: Record, criterion: Criterion) -> "Account":
        """By judging the stored outcomes again; with another criterion the verdict may be another."""
        judge = Judge(criterion, verdict=record.base, is_reference=key.is_reference)
        for outcome in record.outcomes:
            judge.push(outcome)
        if record.changes and record.changes[-1].after is judge.verdict:
            judge.resume(record.changes[-1].at)
        return cls(key, judge, deque(record.changes, maxlen=KEPT_CHANGES))


class Ledger:
    """One account for each key, as this process has it.

    Args:
        task_name: for messages.
        on_verdict: called on the event loop, once for each change.
    """

    def __init__(
        self, store: EvidenceStore, criterion: Criterion, *, task_name: str, on_verdict: OnVerdict
    ) -> None:
        self._store = store
        self._criterion = criterion
        self._task_name = task_name
        self._on_verdict = on_verdict
        self._accounts: dict[EvidenceKey, Account] = {}

    def load(self, keys: Iterable[EvidenceKey]) -> None:
        """Reads what is known of them. Blocks: for the start, before anything runs."""
        for key in keys:
            self._accounts.setdefault(key, self._read(key))

    def get(self, key: EvidenceKey) -> Account | None:
        """None of a key that was not loaded yet."""
        return self._accounts.get(key)

    async def open(self, keys: Iterable[EvidenceKey]) -> list[Account]:
        """One account for each key. Read on a thread; but only the event loop says which is a key's.

        Else who reads beside a round could put what the store held before it in the place of what it found.
        """
        keys = list(keys)
        new = [key for key in keys if key not in self._accounts]
        for account in await asyncio.to_thread(lambda: [self._read(key) for key in new]):
            self._accounts.setdefault(account.key, account)
        return [self._accounts[key] for key in keys]

    async def catch_up(self, keys: Mapping[str, EvidenceKey]) -> dict[str, Account]:
        """Variants' accounts, with what other processes that share the store have found since."""
        accounts = await self.open(keys.values())
        found = await asyncio.to_thread(lambda: [self._news(account) for account in accounts])
        for variant, account, news in zip(keys, accounts, found, strict=True):
            if isinstance(news, Account):
                self._take_over(variant, account.judge.verdict, news)
            else:
                account.unwritten.extend(self._push(variant, account, news))
        return {variant: self._accounts[key] for variant, key in keys.items()}

    async def add(self, outcomes: Mapping[str, tuple[Account, Sequence[Outcome]]]) -> None:
        """Judges what is new about some variants, and keeps it."""
        entries = [self._judge(variant, *new) for variant, new in outcomes.items()]
        await asyncio.to_thread(self._store.append, entries)

    def _judge(self, variant: str, account: Account, outcomes: Sequence[Outcome]) -> Entry:
        had_something_to_lose = account.judge.evidence().nothing_to_lose is None
        changes = [*account.unwritten, *self._push(variant, account, outcomes)]
        account.unwritten.clear()
        reason = account.judge.evidence().nothing_to_lose
        if had_something_to_lose and reason is not None:
            logger.warning("%s cannot be shown to be safe by %s: %s", variant, self._task_name, reason)
        return Entry(account.key, account.judge.base, account.judge.num_kept, outcomes, changes)

    def _push(self, variant: str, account: Account, outcomes: Sequence[Outcome]) -> list[VerdictChange]:
        changes = [change for outcome in outcomes if (change := account.judge.push(outcome))]
        for change in changes:
            self._report(variant, account, change)
        return changes

    def _report(self, variant: str, account: Account, change: VerdictChange) -> None:
        account.changes.append(change)
        found = change.evidence
        logger.warning(
            "%s is %s now, it was %s: of %d items of %s it solved %.1f%%, %.1f points below the reference",
            variant,
            change.after.value,
            change.before.value,
            found.items,
            self._task_name,
            100 * (found.accuracy or 0),
            100 * (found.drop or 0),
        )
        self._on_verdict(variant, change.before, change.after, found)

    def _news(self, account: Account) -> Sequence[Outcome] | Account:
        """What others have added, or all there is where that is not enough."""
        added = self._store.news(account.key)
        if added is not None:
            return added
        record = self._store.reread(account.key)
        return () if record is None else Account.of(account.key, record, self._criterion)

    def _take_over(self, variant: str, before: Verdict, account: Account) -> None:
        self._accounts[account.key] = account
        after = account.judge.verdict
        if after is not before:
            logger.warning("%s is %s now, by what another process has found", variant, after.value)
            self._on_verdict(variant, before, after, account.judge.evidence())

    def _read(self, key: EvidenceKey) -> Account:
        return Account.of(key, self._store.read(key), self._criterion)
