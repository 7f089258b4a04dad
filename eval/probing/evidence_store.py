"""Keeps outcomes and verdicts on disk, so that what was shown is known again after a restart.

One SQLite file, which several processes may share. Kept for each key: the outcomes that its verdict and
evidence rest on (8,000 at most, a row of about 60 bytes each), and its last 50 changes of verdict; of guard
prompts (guard.py) the last 256 answers. Keys are kept until 200 newer ones were probed.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from eval.probing import evidence_rows as rows
from eval.probing.evidence import Entry, EvidenceKey, GuardAnswer, Record
from eval.probing.evidence_file import SQLITE_ERRORS, in_memory, open_file
from eval.probing.verdicts import Outcome

logger = logging.getLogger(__name__)

MAX_NEWS = 256  # outcomes that are judged one by one; more are read with all the others, on a thread

T = TypeVar("T")


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
        self._known: dict[str, rows.State] = {}  # by key, as this store read or wrote it last
        self._connection = in_memory() if path is None else self._open(path)

    def read(self, key: EvidenceKey) -> Record:
        """What is kept for `key`; an empty record where it is new or cannot be read."""
        return self.reread(key) or Record()

    def reread(self, key: EvidenceKey) -> Record | None:
        """The same, and None where it cannot be read: whoever knows something of it already keeps that."""

        def read_all(connection: sqlite3.Connection, key: EvidenceKey) -> Record | None:
            record = rows.read(connection, key)
            self._known[key.digest] = rows.state(connection, key)
            return record

        nothing: Record | None = None
        return self._read(key, read_all, nothing)

    def news(self, key: EvidenceKey) -> Sequence[Outcome] | None:
        """What other processes have added to `key` since it was read or written here last, oldest first.

        None where they have changed more than that, or added much, so that it is to be read again as a whole.
        """

        def added(connection: sqlite3.Connection, key: EvidenceKey) -> Sequence[Outcome] | None:
            known, found = self._known.get(key.digest), rows.state(connection, key)
            if found is None or found == known:  # one that is gone was forgotten for newer ones
                return ()
            if known is None or known[0] != found[0] or not rows.is_there(connection, key, known[1]):
                return None
            outcomes = rows.outcomes(connection, key, after=known[1])
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
                before, digest = rows.state(connection, entry.key), entry.key.digest
                if before is None or before == known.get(digest):
                    subject = rows.append(connection, entry, entry.base.value)
                    rows.keep_last(connection, "outcome", subject, entry.num_kept)
                    known[digest] = rows.state(connection, entry.key)
                else:  # and from here on what is stored is known to nobody but who reads it all
                    rows.append(connection, entry, before[0])
                    known.pop(digest, None)

        if self._write(append_all):
            self._known = known

    def read_guard(self, key: EvidenceKey) -> list[GuardAnswer]:
        """The answers kept for `key`, oldest first; none where it is new or cannot be read."""
        return self._read(key, rows.read_guard, [])

    def append_guard(self, entries: Sequence[tuple[EvidenceKey, GuardAnswer]]) -> None:
        """Keeps all of `entries`, or none where that fails."""

        def append_all(connection: sqlite3.Connection) -> None:
            for key, answer in entries:
                rows.append_guard(connection, key, answer)

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
        self._write(lambda connection: rows.forget(connection, key))
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
