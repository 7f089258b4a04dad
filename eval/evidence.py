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

from eval.traps import Trap
from eval.verdicts import Evidence, Outcome, Verdict, VerdictChange

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
KEPT_CHANGES = 50
KEPT_KEYS = 200
KEPT_GUARD_ANSWERS = 256
BUSY_SECONDS = 5.0
_SCHEMA = """
CREATE TABLE subject (
    id INTEGER PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    key TEXT NOT NULL,
    base TEXT NOT NULL,
    updated_at REAL NOT NULL
);
CREATE TABLE outcome (
    id INTEGER PRIMARY KEY,
    subject INTEGER NOT NULL REFERENCES subject ON DELETE CASCADE,
    item TEXT NOT NULL,
    at REAL NOT NULL,
    correct INTEGER NOT NULL,
    reference_correct INTEGER NOT NULL,
    trap TEXT NOT NULL
);
CREATE INDEX outcome_subject ON outcome (subject, id);
CREATE TABLE change (
    id INTEGER PRIMARY KEY,
    subject INTEGER NOT NULL REFERENCES subject ON DELETE CASCADE,
    at REAL NOT NULL,
    before TEXT NOT NULL,
    after TEXT NOT NULL,
    evidence TEXT NOT NULL
);
CREATE INDEX change_subject ON change (subject, id);
"""
# Came later: added to files that do not have it. A program that does not know it passes it over.
_GUARD_SCHEMA = """
CREATE TABLE IF NOT EXISTS guard_answer (
    id INTEGER PRIMARY KEY,
    subject INTEGER NOT NULL REFERENCES subject ON DELETE CASCADE,
    at REAL NOT NULL,
    tokens INTEGER NOT NULL,
    agreements INTEGER NOT NULL,
    kl_nats REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS guard_answer_subject ON guard_answer (subject, id);
"""


@dataclass(frozen=True)
class EvidenceKey:
    """All that answers and grades depend on. Evidence for one key says nothing about another.

    Attributes:
        model: the checkpoint's fingerprint.
        ranking: the ranking's digest.
        computation: dtype, kernels and whatever else decides between two tokens that are nearly as likely.
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

    A damaged file, or one of another schema, is set aside and a new one begun. Where the disk cannot be
    written, that is logged once and what cannot be written is not kept; nothing here raises.

    Args:
        path: the file; its directory is made. None: nothing outlives the process.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._complained = False
        self._connection = _memory() if path is None else self._open(path)

    def read(self, key: EvidenceKey) -> Record:
        """What is kept for `key`; an empty record where it is new or cannot be read."""
        with self._lock:
            try:
                return _read(self._connection, key)
            except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
                self._complain("read", error)
                return Record()

    def append(self, entries: Sequence[Entry]) -> None:
        """Keeps all of `entries`, or none where that fails."""

        def append_all(connection: sqlite3.Connection) -> None:
            for entry in entries:
                _append(connection, entry)

        self._write(append_all)

    def _write(self, what: Callable[[sqlite3.Connection], None]) -> None:
        with self._lock:
            try:
                with self._connection:  # a transaction
                    what(self._connection)
            except sqlite3.Error as error:
                self._complain("written", error)
            else:
                self._complained = False

    def read_guard(self, key: EvidenceKey) -> list[GuardAnswer]:
        """The answers kept for `key`, oldest first; none where it is new or cannot be read."""
        with self._lock:
            try:
                rows = self._connection.execute(
                    "SELECT at, tokens, agreements, kl_nats FROM guard_answer JOIN subject "
                    "ON subject = subject.id WHERE digest = ? ORDER BY guard_answer.id",
                    (key.digest,),
                )
                return [GuardAnswer(*row) for row in rows]
            except sqlite3.Error as error:
                self._complain("read", error)
                return []

    def append_guard(self, entries: Sequence[tuple[EvidenceKey, GuardAnswer]]) -> None:
        """Keeps all of `entries`, or none where that fails."""

        def append_all(connection: sqlite3.Connection) -> None:
            for key, answer in entries:
                _append_guard(connection, key, answer)

        self._write(append_all)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _open(self, path: Path) -> sqlite3.Connection:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return _connect(path)
            except sqlite3.OperationalError:
                raise  # the disk's fault, not the file's
            except sqlite3.DatabaseError as error:
                _set_aside(path, error)
                return _connect(path)
        except (OSError, sqlite3.Error) as error:
            self._complain("opened", error)
            return _memory()

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


def _memory() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.executescript(_SCHEMA + _GUARD_SCHEMA)
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    """Raises sqlite3.DatabaseError, and not OperationalError, where the file is damaged or foreign."""
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False)
    try:
        # Not WAL: to switch to it, SQLite does not wait for another process that does the same.
        connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may take the last outcomes, no more
        connection.execute("PRAGMA foreign_keys = ON")
        _prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)
    connection.execute("BEGIN IMMEDIATE")  # of two processes, one makes the tables
    with connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == SCHEMA_VERSION:
            _execute_all(connection, _GUARD_SCHEMA)
            return
        if version != 0 or connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise sqlite3.DatabaseError(f"its schema is version {version}, this program's {SCHEMA_VERSION}")
        _execute_all(connection, _SCHEMA + _GUARD_SCHEMA)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _execute_all(connection: sqlite3.Connection, statements: str) -> None:
    """Within the transaction that is open, unlike `executescript`."""
    for statement in statements.split(";"):
        connection.execute(statement)


def _set_aside(path: Path, error: Exception) -> None:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(aside)
    # It belongs to the damaged file, and would be played back into the new one.
    path.with_name(path.name + "-journal").unlink(missing_ok=True)
    logger.warning(
        "the probe evidence in %s cannot be used (%s): kept as %s, beginning anew", path, error, aside
    )


def _read(connection: sqlite3.Connection, key: EvidenceKey) -> Record:
    row = connection.execute("SELECT id, base FROM subject WHERE digest = ?", (key.digest,)).fetchone()
    if row is None:
        return Record()
    subject, base = row
    outcomes = connection.execute(
        "SELECT item, at, correct, reference_correct, trap FROM outcome WHERE subject = ? ORDER BY id",
        (subject,),
    )
    changes = connection.execute(
        "SELECT at, before, after, evidence FROM change WHERE subject = ? ORDER BY id", (subject,)
    )
    return Record(
        Verdict(base),
        tuple(Outcome(item, at, bool(c), bool(r), Trap(trap)) for item, at, c, r, trap in outcomes),
        tuple(VerdictChange(at, Verdict(b), Verdict(a), _from_json(e)) for at, b, a, e in changes),
    )


def _append(connection: sqlite3.Connection, entry: Entry) -> None:
    updated_at = max((outcome.at for outcome in entry.outcomes), default=0.0)
    subject = _subject(connection, entry.key, entry.base, updated_at)
    connection.executemany(
        "INSERT INTO outcome (subject, item, at, correct, reference_correct, trap) VALUES (?, ?, ?, ?, ?, ?)",
        [(subject, o.item_id, o.at, o.correct, o.reference_correct, o.trap.value) for o in entry.outcomes],
    )
    connection.executemany(
        "INSERT INTO change (subject, at, before, after, evidence) VALUES (?, ?, ?, ?, ?)",
        [(subject, c.at, c.before.value, c.after.value, _to_json(c.evidence)) for c in entry.changes],
    )
    _keep_last(connection, "outcome", subject, entry.num_kept)
    _keep_last(connection, "change", subject, KEPT_CHANGES)
    _forget_old_keys(connection)


def _append_guard(connection: sqlite3.Connection, key: EvidenceKey, answer: GuardAnswer) -> None:
    subject = _subject(connection, key, Verdict.UNPROVEN, answer.at)
    connection.execute(
        "INSERT INTO guard_answer (subject, at, tokens, agreements, kl_nats) VALUES (?, ?, ?, ?, ?)",
        (subject, answer.at, answer.tokens, answer.agreements, answer.kl_nats),
    )
    _keep_last(connection, "guard_answer", subject, KEPT_GUARD_ANSWERS)
    _forget_old_keys(connection)


def _subject(connection: sqlite3.Connection, key: EvidenceKey, base: Verdict, updated_at: float) -> int:
    """The row of `key`, made or brought up to date."""
    row: tuple[int] = connection.execute(
        "INSERT INTO subject (digest, key, base, updated_at) VALUES (?, ?, ?, ?) ON CONFLICT (digest) "
        "DO UPDATE SET base = excluded.base, updated_at = max(updated_at, excluded.updated_at) RETURNING id",
        (key.digest, json.dumps(asdict(key)), base.value, updated_at),
    ).fetchone()
    return row[0]


def _keep_last(connection: sqlite3.Connection, table: str, subject: int, kept: int) -> None:
    connection.execute(
        f"DELETE FROM {table} WHERE subject = :subject AND id <= "
        f"(SELECT id FROM {table} WHERE subject = :subject ORDER BY id DESC LIMIT 1 OFFSET :kept)",
        {"subject": subject, "kept": kept},
    )


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
