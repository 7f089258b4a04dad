"""Keeps outcomes and verdicts on disk, so that what was shown is known again after a restart.

One SQLite file, which several processes may share. Knows outcomes, not what they amount to (eval/judge.py).

Kept for each key: the outcomes that its verdict and evidence rest on (8,000 at most, a row of about 60 bytes
each), and its last 50 changes of verdict; of guard prompts (eval/guard.py) the last 256 answers. Keys are
kept until 200 newer ones were probed.
"""

import hashlib
import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from eval.evidence_file import SQLITE_ERRORS, in_memory, open_file
from eval.traps import Trap
from eval.verdicts import Evidence, Outcome, Verdict, VerdictChange

logger = logging.getLogger(__name__)

KEPT_CHANGES = 50
KEPT_KEYS = 200
KEPT_GUARD_ANSWERS = 256
MAX_NEWS = 256  # outcomes that are judged one by one; more are read with all the others, on a thread

T = TypeVar("T")


@dataclass(frozen=True)
class EvidenceKey:
    """All that answers and grades depend on. Evidence for one key says nothing about another.

    Attributes:
        model: the checkpoint's fingerprint.
        ranking: the ranking's digest.
        computation: dtype, kernels and whatever else decides between two tokens that are nearly as likely or
            ends an answer; and by what criterion the verdict is reached.
        task: the task's digest.
        widths: the variant's neurons per layer.
        reference_widths: those of the variant that it is compared with; the same for the reference itself.
        delta, reference_delta: digests of what corrects each of the two, "" for nothing.
    """

    model: str
    ranking: str
    computation: str
    task: str
    widths: tuple[int, ...]
    reference_widths: tuple[int, ...]
    delta: str = ""
    reference_delta: str = ""

    @property
    def is_reference(self) -> bool:
        return (self.widths, self.delta) == (self.reference_widths, self.reference_delta)

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Record:
    """What is kept for one key.

    Attributes:
        base: the verdict before the first of `outcomes`.
        outcomes, changes: oldest first.
    """

    base: Verdict = Verdict.UNPROVEN
    outcomes: tuple[Outcome, ...] = ()
    changes: tuple[VerdictChange, ...] = ()


@dataclass(frozen=True)
class Entry:
    """What is new about one key.

    Attributes:
        base: the verdict before the first of the outcomes that are kept.
        num_kept: outcomes kept, the newest ones; older ones are deleted.
    """

    key: EvidenceKey
    base: Verdict
    num_kept: int
    outcomes: Sequence[Outcome]
    changes: Sequence[VerdictChange] = field(default=())


@dataclass(frozen=True)
class GuardAnswer:
    """How near a variant was to the reference, over the tokens of one answer to a guard prompt.

    Attributes:
        at: when, in seconds since the epoch.
        agreements: tokens that both find likeliest.
        kl_nats: sum over the tokens of the divergence.
    """

    at: float
    tokens: int
    agreements: int
    kl_nats: float


class EvidenceStore:
    """Outcomes and changes of verdict by key. All methods may be called from any thread, and block.

    A damaged file, or one of another schema, is set aside and a new one begun; a key whose rows make no sense
    is forgotten. Where the disk cannot be written, that is logged once and what cannot be written is not
    kept; nothing here raises.

    Args:
        path: the file; its directory is made. None: nothing outlives the process.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._complained = False
        self._known: dict[str, _State] = {}  # by key, as this store read or wrote it last
        self._connection = in_memory() if path is None else self._open(path)

    def read(self, key: EvidenceKey) -> Record:
        """What is kept for `key`; an empty record where it is new or cannot be read."""
        return self.reread(key) or Record()

    def reread(self, key: EvidenceKey) -> Record | None:
        """The same, and None where it cannot be read: whoever knows something of it already keeps that."""

        def read_all(connection: sqlite3.Connection, key: EvidenceKey) -> Record | None:
            record = _read(connection, key)
            self._known[key.digest] = _state(connection, key)
            return record

        nothing: Record | None = None
        return self._read(key, read_all, nothing)

    def news(self, key: EvidenceKey) -> Sequence[Outcome] | None:
        """What other processes have added to `key` since it was read or written here last, oldest first.

        None where they have changed more than that, or added much, so that it is to be read again as a whole.
        """

        def added(connection: sqlite3.Connection, key: EvidenceKey) -> Sequence[Outcome] | None:
            known, found = self._known.get(key.digest), _state(connection, key)
            if found is None or found == known:  # one that is gone was forgotten for newer ones
                return ()
            if known is None or known[0] != found[0] or not _is_there(connection, key, known[1]):
                return None
            outcomes = _outcomes(connection, key, after=known[1])
            if len(outcomes) > MAX_NEWS:
                return None
            self._known[key.digest] = found
            return outcomes

        nothing: Sequence[Outcome] | None = ()
        return self._read(key, added, nothing)

    def append(self, entries: Sequence[Entry]) -> None:
        """Keeps all of `entries`, or none where that fails.

        Where another process has written to a key since, outcomes and changes are added to its own; what they
        amount to together is for whoever asks for the `news`, and nothing is deleted until then.
        """
        known = dict(self._known)

        def append_all(connection: sqlite3.Connection) -> None:
            for entry in entries:
                before, digest = _state(connection, entry.key), entry.key.digest
                if before is None or before == known.get(digest):
                    subject = _append(connection, entry, entry.base.value)
                    _keep_last(connection, "outcome", subject, entry.num_kept)
                    known[digest] = _state(connection, entry.key)
                else:  # and from here on what is stored is known to nobody but who reads it all
                    _append(connection, entry, before[0])
                    known.pop(digest, None)

        if self._write(append_all):
            self._known = known

    def read_guard(self, key: EvidenceKey) -> list[GuardAnswer]:
        """The answers kept for `key`, oldest first; none where it is new or cannot be read."""
        return self._read(key, _read_guard, [])

    def append_guard(self, entries: Sequence[tuple[EvidenceKey, GuardAnswer]]) -> None:
        """Keeps all of `entries`, or none where that fails."""

        def append_all(connection: sqlite3.Connection) -> None:
            for key, answer in entries:
                _append_guard(connection, key, answer)

        self._write(append_all)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _read(self, key: EvidenceKey, what: Callable[[sqlite3.Connection, EvidenceKey], T], nothing: T) -> T:
        with self._lock:
            try:
                with self._connection:  # all that is read is of one moment
                    self._connection.execute("BEGIN")
                    return what(self._connection, key)
            except SQLITE_ERRORS as error:
                self._complain("read", error)
                return nothing
            except (ValueError, KeyError, TypeError) as error:
                logger.warning(
                    "the probe evidence of a variant is damaged (%s: %s): it is forgotten, the rest is kept",
                    self._path,
                    error,
                )
        self._write(lambda connection: _forget(connection, key))
        return nothing

    def _write(self, what: Callable[[sqlite3.Connection], None]) -> bool:
        """Whether it could be."""
        with self._lock:
            try:
                with self._connection:  # a transaction
                    self._connection.execute("BEGIN IMMEDIATE")  # what it reads first is what it changes
                    what(self._connection)
            except SQLITE_ERRORS as error:
                self._complain("written", error)
                return False
            self._complained = False
            return True

    def _open(self, path: Path) -> sqlite3.Connection:
        try:
            return open_file(path)
        except (OSError, *SQLITE_ERRORS) as error:
            self._complain("opened", error)
            return in_memory()

    def _complain(self, what: str, error: Exception) -> None:
        if not self._complained:
            logger.warning(
                "probe evidence cannot be %s (%s: %s); probing goes on, but what it shows from now on may be "
                "forgotten at the next start: check the disk and the permissions",
                what,
                self._path,
                error,
            )
        self._complained = True


_State = tuple[str, int] | None  # base and last outcome of a key; None where it is not there


def _state(connection: sqlite3.Connection, key: EvidenceKey) -> _State:
    row: tuple[str, int] | None = connection.execute(
        "SELECT base, (SELECT coalesce(max(id), 0) FROM outcome WHERE subject = subject.id) FROM subject "
        "WHERE digest = ?",
        (key.digest,),
    ).fetchone()
    return row


def _read(connection: sqlite3.Connection, key: EvidenceKey) -> Record:
    row = connection.execute("SELECT id, base FROM subject WHERE digest = ?", (key.digest,)).fetchone()
    if row is None:
        return Record()
    subject, base = row
    changes = connection.execute(
        "SELECT at, before, after, evidence FROM change WHERE subject = ? ORDER BY id", (subject,)
    ).fetchall()
    return Record(
        Verdict(base),
        _outcomes(connection, key, after=0),
        tuple(VerdictChange(at, Verdict(b), Verdict(a), _from_json(e)) for at, b, a, e in changes),
    )


def _outcomes(connection: sqlite3.Connection, key: EvidenceKey, *, after: int) -> tuple[Outcome, ...]:
    rows = connection.execute(
        "SELECT item, at, correct, reference_correct, trap FROM outcome JOIN subject ON subject = subject.id "
        "WHERE digest = ? AND outcome.id > ? ORDER BY outcome.id",
        (key.digest, after),
    ).fetchall()  # a cursor that is left in the middle would keep the file locked
    return tuple(Outcome(item, float(at), bool(c), bool(r), Trap(trap)) for item, at, c, r, trap in rows)


def _is_there(connection: sqlite3.Connection, key: EvidenceKey, outcome: int) -> bool:
    row = connection.execute(
        "SELECT 1 FROM outcome JOIN subject ON subject = subject.id WHERE digest = ? AND outcome.id = ?",
        (key.digest, outcome),
    ).fetchone()
    return row is not None


def _read_guard(connection: sqlite3.Connection, key: EvidenceKey) -> list[GuardAnswer]:
    rows = connection.execute(
        "SELECT at, tokens, agreements, kl_nats FROM guard_answer JOIN subject ON subject = subject.id "
        "WHERE digest = ? ORDER BY guard_answer.id",
        (key.digest,),
    ).fetchall()
    return [GuardAnswer(float(at), int(tokens), int(same), float(kl)) for at, tokens, same, kl in rows]


def _append(connection: sqlite3.Connection, entry: Entry, base: str) -> int:
    """Returns the key's row."""
    updated_at = max((outcome.at for outcome in entry.outcomes), default=0.0)
    subject = _subject(connection, entry.key, base, updated_at)
    connection.executemany(
        "INSERT INTO outcome (subject, item, at, correct, reference_correct, trap) VALUES (?, ?, ?, ?, ?, ?)",
        [(subject, o.item_id, o.at, o.correct, o.reference_correct, o.trap.value) for o in entry.outcomes],
    )
    for change in entry.changes:
        found = (subject, change.at, change.before.value, change.after.value)
        connection.execute(
            # Who judges the same outcomes finds the same changes, and one of them writes them first.
            "INSERT INTO change (subject, at, before, after, evidence) SELECT ?, ?, ?, ?, ? WHERE NOT EXISTS "
            "(SELECT 1 FROM change WHERE (subject, at, before, after) = (?, ?, ?, ?))",
            (*found, _to_json(change.evidence), *found),
        )
    _keep_last(connection, "change", subject, KEPT_CHANGES)
    _forget_old_keys(connection)
    return subject


def _append_guard(connection: sqlite3.Connection, key: EvidenceKey, answer: GuardAnswer) -> None:
    subject = _subject(connection, key, Verdict.UNPROVEN.value, answer.at)
    connection.execute(
        "INSERT INTO guard_answer (subject, at, tokens, agreements, kl_nats) VALUES (?, ?, ?, ?, ?)",
        (subject, answer.at, answer.tokens, answer.agreements, answer.kl_nats),
    )
    _keep_last(connection, "guard_answer", subject, KEPT_GUARD_ANSWERS)
    _forget_old_keys(connection)


def _subject(connection: sqlite3.Connection, key: EvidenceKey, base: str, updated_at: float) -> int:
    """The row of `key`, made or brought up to date."""
    row: tuple[int] = connection.execute(
        "INSERT INTO subject (digest, key, base, updated_at) VALUES (?, ?, ?, ?) ON CONFLICT (digest) "
        "DO UPDATE SET base = excluded.base, updated_at = max(updated_at, excluded.updated_at) RETURNING id",
        (key.digest, json.dumps(asdict(key)), base, updated_at),
    ).fetchone()
    return row[0]


def _keep_last(connection: sqlite3.Connection, table: str, subject: int, kept: int) -> None:
    connection.execute(
        f"DELETE FROM {table} WHERE subject = :subject AND id <= "
        f"(SELECT id FROM {table} WHERE subject = :subject ORDER BY id DESC LIMIT 1 OFFSET :kept)",
        {"subject": subject, "kept": kept},
    )


def _forget(connection: sqlite3.Connection, key: EvidenceKey) -> None:
    connection.execute("DELETE FROM subject WHERE digest = ?", (key.digest,))


def _forget_old_keys(connection: sqlite3.Connection) -> None:
    connection.execute(
        "DELETE FROM subject WHERE id IN (SELECT id FROM subject ORDER BY updated_at DESC LIMIT -1 OFFSET ?)",
        (KEPT_KEYS,),
    )


def _to_json(evidence: Evidence) -> str:
    return json.dumps(asdict(evidence))


def _from_json(text: str) -> Evidence:
    fields = json.loads(text)
    fields["verdict"] = Verdict(fields["verdict"])
    fields["traps"] = {Trap(trap): count for trap, count in fields["traps"].items()}
    return Evidence(**fields)
