"""Opens the SQLite file that evidence is kept in: makes its tables, and sets a damaged file aside.

Knows which tables there are; what is read from and written to them is evidence_rows.py's.
"""

import logging
import sqlite3
from pathlib import Path

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
BUSY_SECONDS = 30.0  # that another process may take to write; SQLite lets nobody stand in line
# sqlite3 quotes a damaged file in its messages, and then may fail to decode them.
SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
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


def in_memory() -> sqlite3.Connection:
    """The same tables in no file."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.executescript(_SCHEMA + _GUARD_SCHEMA)
    return connection


def open_file(path: Path) -> sqlite3.Connection:
    """The file at `path`, made where there is none. A damaged or foreign one is set aside, a new one begun.

    Raises:
        OSError, sqlite3.Error: the disk does not allow it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _connect(path)
    except sqlite3.OperationalError:
        raise  # the disk's fault, not the file's
    except SQLITE_ERRORS as error:
        _set_aside(path, error)
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    """Raises `SQLITE_ERRORS`, and not OperationalError, where the file is damaged or foreign."""
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False)
    # Else text that cannot be decoded would be the disk's fault; what it should say, the reader knows.
    connection.text_factory = lambda raw: raw.decode(errors="replace")
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
    (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(" ".join(found.split()))
    connection.execute("BEGIN IMMEDIATE")  # of two processes, one makes the tables
    with connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0 and not _definitions(connection):
            _execute_all(connection, _SCHEMA)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif version != SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"its schema is version {version}, this program's {SCHEMA_VERSION}")
        _execute_all(connection, _GUARD_SCHEMA)
        if not _definitions(in_memory()) <= _definitions(connection):
            raise sqlite3.DatabaseError("its tables are not those that this program makes")


def _definitions(connection: sqlite3.Connection) -> set[str]:
    """The statements that made what is there, but for what SQLite makes by itself."""
    return {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}


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
