"""Evidence as rows of the tables that evidence_file.py makes: every SQL statement on them.

All are run inside a transaction of whoever calls.
"""

import json
import sqlite3
from dataclasses import asdict

from eval.probing.evidence import Entry, EvidenceKey, GuardAnswer, Record
from eval.probing.verdicts import Evidence, Outcome, Verdict, VerdictChange
from eval.traps import Trap

KEPT_CHANGES = 50
KEPT_KEYS = 200
KEPT_GUARD_ANSWERS = 256

State = tuple[str, int] | None  # base and last outcome of a key; None where it is not there


def state(connection: sqlite3.Connection, key: EvidenceKey) -> State:
    row: tuple[str, int] | None = connection.execute(
        "SELECT base, (SELECT coalesce(max(id), 0) FROM outcome WHERE subject = subject.id) FROM subject "
        "WHERE digest = ?",
        (key.digest,),
    ).fetchone()
    return row


def read(connection: sqlite3.Connection, key: EvidenceKey) -> Record:
    row = connection.execute("SELECT id, base FROM subject WHERE digest = ?", (key.digest,)).fetchone()
    if row is None:
        return Record()
    subject, base = row
    changes = connection.execute(
        "SELECT at, before, after, evidence FROM change WHERE subject = ? ORDER BY id", (subject,)
    ).fetchall()
    return Record(
        Verdict(base),
        outcomes(connection, key, after=0),
        tuple(VerdictChange(at, Verdict(b), Verdict(a), _from_json(e)) for at, b, a, e in changes),
    )


def outcomes(connection: sqlite3.Connection, key: EvidenceKey, *, after: int) -> tuple[Outcome, ...]:
    rows = connection.execute(
        "SELECT item, at, correct, reference_correct, trap FROM outcome JOIN subject ON subject = subject.id "
        "WHERE digest = ? AND outcome.id > ? ORDER BY outcome.id",
        (key.digest, after),
    ).fetchall()  # a cursor that is left in the middle would keep the file locked
    return tuple(Outcome(item, float(at), bool(c), bool(r), Trap(trap)) for item, at, c, r, trap in rows)


def is_there(connection: sqlite3.Connection, key: EvidenceKey, outcome: int) -> bool:
    row = connection.execute(
        "SELECT 1 FROM outcome JOIN subject ON subject = subject.id WHERE digest = ? AND outcome.id = ?",
        (key.digest, outcome),
    ).fetchone()
    return row is not None


def read_guard(connection: sqlite3.Connection, key: EvidenceKey) -> list[GuardAnswer]:
    rows = connection.execute(
        "SELECT at, tokens, agreements, kl_nats FROM guard_answer JOIN subject ON subject = subject.id "
        "WHERE digest = ? ORDER BY guard_answer.id",
        (key.digest,),
    ).fetchall()
    return [GuardAnswer(float(at), int(tokens), int(same), float(kl)) for at, tokens, same, kl in rows]


def append(connection: sqlite3.Connection, entry: Entry, base: str) -> int:
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
    keep_last(connection, "change", subject, KEPT_CHANGES)
    _forget_old_keys(connection)
    return subject


def append_guard(connection: sqlite3.Connection, key: EvidenceKey, answer: GuardAnswer) -> None:
    subject = _subject(connection, key, Verdict.UNPROVEN.value, answer.at)
    connection.execute(
        "INSERT INTO guard_answer (subject, at, tokens, agreements, kl_nats) VALUES (?, ?, ?, ?, ?)",
        (subject, answer.at, answer.tokens, answer.agreements, answer.kl_nats),
    )
    keep_last(connection, "guard_answer", subject, KEPT_GUARD_ANSWERS)
    _forget_old_keys(connection)


def _subject(connection: sqlite3.Connection, key: EvidenceKey, base: str, updated_at: float) -> int:
    """The row of `key`, made or brought up to date."""
    row: tuple[int] = connection.execute(
        "INSERT INTO subject (digest, key, base, updated_at) VALUES (?, ?, ?, ?) ON CONFLICT (digest) "
        "DO UPDATE SET base = excluded.base, updated_at = max(updated_at, excluded.updated_at) RETURNING id",
        (key.digest, json.dumps(asdict(key)), base, updated_at),
    ).fetchone()
    return row[0]


def keep_last(connection: sqlite3.Connection, table: str, subject: int, kept: int) -> None:
    connection.execute(
        f"DELETE FROM {table} WHERE subject = :subject AND id <= "
        f"(SELECT id FROM {table} WHERE subject = :subject ORDER BY id DESC LIMIT 1 OFFSET :kept)",
        {"subject": subject, "kept": kept},
    )


def forget(connection: sqlite3.Connection, key: EvidenceKey) -> None:
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
