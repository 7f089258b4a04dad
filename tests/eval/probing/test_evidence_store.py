"""Evidence survives restarts, damage, full disks and company; and takes bounded room."""

import dataclasses
import logging
import os
import sqlite3
import subprocess
import sys

import pytest

from eval.probing.evidence import Entry, EvidenceKey, Record
from eval.probing.evidence_rows import KEPT_CHANGES, KEPT_KEYS
from eval.probing.evidence_store import EvidenceStore
from eval.probing.judge import Judge
from eval.probing.verdicts import Criterion, Verdict
from tests.eval.probing.outcomes import outcomes

KEY = EvidenceKey("model", "ranking", "bfloat16/compiled", "task", (64, 32), (96, 96))


def judged(judge, sequence):
    """What a prober would append of `sequence`."""
    sequence = list(sequence)
    changes = [change for outcome in sequence if (change := judge.push(outcome))]
    return Entry(KEY, judge.base, judge.num_kept, sequence, changes)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "evidence.sqlite"


def test_a_delta_makes_another_key_of_the_same_widths():
    plain = dataclasses.replace(KEY, widths=(96, 96))
    corrected = dataclasses.replace(plain, delta="d")
    assert plain.is_reference
    assert not corrected.is_reference
    assert dataclasses.replace(corrected, reference_delta="d").is_reference
    others = [dataclasses.replace(corrected, delta="e"), dataclasses.replace(plain, reference_delta="d")]
    assert len({key.digest for key in (KEY, plain, corrected, *others)}) == 5


def test_a_new_key_has_no_record(path):
    assert EvidenceStore(path).read(KEY) == Record()


def test_what_was_appended_is_read_after_a_restart(path):
    store, judge = EvidenceStore(path), Judge(Criterion())
    entries = [judged(judge, outcomes(700)), judged(judge, outcomes(30, seed=1))]
    for entry in entries:
        store.append([entry])
    store.close()
    record = EvidenceStore(path).read(KEY)
    assert record.outcomes == (*entries[0].outcomes, *entries[1].outcomes)
    assert record.changes == (*entries[0].changes, *entries[1].changes)
    assert record.changes[0].after is Verdict.SAFE
    assert record.changes[0].evidence == entries[0].changes[0].evidence
    again = Judge(Criterion(), verdict=record.base)
    judged(again, record.outcomes)
    assert again.evidence() == judge.evidence()


def test_a_demotion_is_remembered_though_its_outcomes_are_not(path):
    store, judge = EvidenceStore(path), Judge(Criterion())
    for n in range(0, 600, 4):
        store.append([judged(judge, outcomes(4, drop=0.5, seed=n))])
    record = store.read(KEY)
    assert record.base is Verdict.DEGRADED
    assert len(record.outcomes) == judge.num_kept < 600
    again = Judge(Criterion(), verdict=record.base)
    judged(again, record.outcomes)
    assert again.verdict is judge.verdict is Verdict.DEGRADED


@pytest.mark.parametrize(
    "other",
    [
        {"model": "x"},
        {"ranking": "x"},
        {"computation": "float32/torch"},
        {"task": "x"},
        {"widths": (64, 33)},
        {"reference_widths": (96, 95)},
    ],
)
def test_whatever_changes_answers_starts_unproven(path, other):
    store = EvidenceStore(path)
    store.append([judged(Judge(Criterion()), outcomes(50))])
    assert store.read(dataclasses.replace(KEY, **other)) == Record()
    assert len(store.read(dataclasses.replace(KEY)).outcomes) == 50


def test_only_what_the_verdict_rests_on_is_kept(path):
    store, pushed = EvidenceStore(path), list(outcomes(30))
    (change,) = judged(Judge(Criterion()), outcomes(200, drop=0.9)).changes
    for number, outcome in enumerate(pushed):
        changes = [dataclasses.replace(change, at=change.at + 3 * number + n) for n in range(3)]
        store.append([Entry(KEY, Verdict.UNPROVEN, 7, [outcome], changes)])
    record = store.read(KEY)
    assert record.outcomes == tuple(pushed[-7:])
    assert len(record.changes) == KEPT_CHANGES


def test_keys_are_forgotten_when_many_newer_ones_came(path):
    store = EvidenceStore(path)
    for n in range(KEPT_KEYS + 5):
        key = dataclasses.replace(KEY, model=f"model {n}")
        (outcome,) = outcomes(1)
        store.append([Entry(key, Verdict.UNPROVEN, 9, [dataclasses.replace(outcome, at=float(n))])])
    counts = {table: _count(path, table) for table in ("subject", "outcome")}
    assert counts == {"subject": KEPT_KEYS, "outcome": KEPT_KEYS}
    assert store.read(dataclasses.replace(KEY, model="model 4")) == Record()
    assert store.read(dataclasses.replace(KEY, model="model 5")).outcomes


def _count(path, table):
    connection = sqlite3.connect(path)
    try:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    finally:
        connection.close()


def test_a_batch_is_kept_whole_or_not_at_all(path):
    store = EvidenceStore(path)
    good = judged(Judge(Criterion()), outcomes(5))
    (outcome,) = outcomes(1)
    bad = Entry(KEY, Verdict.UNPROVEN, 9, [dataclasses.replace(outcome, item_id=None)])
    store.append([good, bad])
    assert store.read(KEY) == Record()


def _garbage(path):
    path.write_bytes(b"this is no database, though it is long enough to be taken for one" * 100)


def _torn(path):
    """A page in the middle is overwritten, as a broken disk does."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(8192))


def _foreign(path):
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE recipes (name)")
    connection.close()


def _from_the_future(path):
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 999")
    connection.close()


def _replaced(old, new):
    """Bytes of the file that have become others, in the text of its schema or in its rows."""

    def damage(path):
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new, 1))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        _garbage,
        _torn,
        _foreign,
        _from_the_future,
        # sqlite3 cannot decode what it quotes
        _replaced(b"CREATE TABLE outcome", b"CREATE T\xffBLE outcome"),
        _replaced(b"reference_correct INTEGER", b"reference_Xorrect INTEGER"),
        _replaced(b"digest TEXT NOT NULL UNIQUE", b"digest TEXT NOT NULL UNIQXE"),
    ],
)
def test_a_damaged_file_is_set_aside(path, damage, caplog):
    for number in (1, 2):
        store = EvidenceStore(path)
        store.append([judged(Judge(Criterion()), outcomes(300))])
        store.close()
        damage(path)
        caplog.clear()
        store = EvidenceStore(path)
        assert store.read(KEY) == Record()
        assert (path.parent / f"evidence.sqlite.damaged-{number}").exists()
        assert caplog.text.count("cannot be used") == 1
        store.append([judged(Judge(Criterion()), outcomes(9))])
        store.close()
        assert len(EvidenceStore(path).read(KEY).outcomes) == 9


@pytest.mark.parametrize(
    ("old", "new"), [(b"none", b"n\xffne"), (b'"verdict"', b'"verxict"'), (b"unproven", b"unprovem")]
)
def test_a_key_whose_rows_make_no_sense_is_forgotten_and_kept_from_then_on(path, old, new, caplog):
    store = EvidenceStore(path)
    entry = judged(Judge(Criterion()), outcomes(700))
    assert entry.changes
    store.append([entry])
    store.close()
    _replaced(old, new)(path)
    store = EvidenceStore(path)
    assert store.read(KEY) == Record()
    assert caplog.text.count("is damaged") == 1
    store.append([judged(Judge(Criterion()), outcomes(9))])
    store.close()
    assert len(EvidenceStore(path).read(KEY).outcomes) == 9


def test_a_file_that_is_damaged_meanwhile_stops_nothing(path, caplog):
    store = EvidenceStore(path)
    store.append([judged(Judge(Criterion()), outcomes(20))])
    _replaced(b"CREATE TABLE outcome", b"CREATE T\xffBLE outcome")(path)
    other = sqlite3.connect(path)
    other.execute("PRAGMA writable_schema = ON")
    other.execute("PRAGMA schema_version = 99")  # whoever has it open reads the schema again
    other.close()
    store.append([judged(Judge(Criterion()), outcomes(5))])
    assert store.read(KEY) == Record()
    assert caplog.text.count("cannot be written") == 1


def test_a_full_disk_is_told_once_and_stops_nothing(path, caplog):
    store = EvidenceStore(path)
    store.append([judged(Judge(Criterion()), outcomes(5))])
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own way to run out of room
    for seed in range(3):
        store.append([judged(Judge(Criterion()), outcomes(500, seed=seed))])
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "disk is full" in caplog.text
    assert len(store.read(KEY).outcomes) == 5
    store._connection.execute(f"PRAGMA max_page_count = {pages + 1_000}")
    store.append([judged(Judge(Criterion()), outcomes(20))])
    assert len(EvidenceStore(path).read(KEY).outcomes) == 20  # the entry keeps its 20 newest


def test_a_read_only_file_is_told_once_and_probing_goes_on(path, caplog):
    EvidenceStore(path).close()
    store = EvidenceStore(path)
    store._connection.execute("PRAGMA query_only = ON")  # permissions do not bind a test that runs as root
    for _ in range(3):
        store.append([judged(Judge(Criterion()), outcomes(5))])
    assert caplog.text.count("cannot be written") == 1
    assert "readonly" in caplog.text


def test_where_no_file_can_be_made_evidence_is_kept_in_memory(tmp_path, caplog):
    (tmp_path / "file").write_text("not a directory")
    store = EvidenceStore(tmp_path / "file" / "evidence.sqlite")
    assert caplog.text.count("cannot be opened") == 1
    store.append([judged(Judge(Criterion()), outcomes(5))])
    assert len(store.read(KEY).outcomes) == 5


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = EvidenceStore(None)
    store.append([judged(Judge(Criterion()), outcomes(5))])
    assert len(store.read(KEY).outcomes) == 5
    assert not list(tmp_path.iterdir())


WRITER = """
import sys
from pathlib import Path
from eval.probing.evidence import Entry
from eval.probing.evidence_store import EvidenceStore
from eval.probing.verdicts import Verdict
from tests.eval.probing.outcomes import outcomes
from tests.eval.probing.test_evidence_store import KEY
sys.stdin.readline()
store = EvidenceStore(Path(sys.argv[1]))
for outcome in outcomes(100, seed=int(sys.argv[2])):
    store.append([Entry(KEY, Verdict.UNPROVEN, 1_000, [outcome])])
"""


def test_two_processes_share_a_file_and_lose_nothing(path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), seed], env=env, stdin=subprocess.PIPE, text=True
        )
        for seed in ("1", "2")
    ]
    for writer in writers:  # both have imported all; neither has opened the file
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.stdin.close()
        assert writer.wait(100) == 0
    items = [outcome.item_id for outcome in EvidenceStore(path).read(KEY).outcomes]
    for seed in (1, 2):
        assert [i for i in items if i.startswith(f"{seed}/")] == [o.item_id for o in outcomes(100, seed=seed)]


def test_what_others_added_is_news_once_and_after_a_race_all_is_read_again(path):
    first, second = EvidenceStore(path), EvidenceStore(path)
    mine, theirs, more = (outcomes(count, seed=seed) for count, seed in ((6, 1), (4, 2), (3, 3)))
    mine, theirs, more = list(mine), list(theirs), list(more)
    entry = judged(Judge(Criterion()), mine)
    first.append([entry])
    assert second.news(KEY) is None, "it has never read it"
    assert second.read(KEY).outcomes == tuple(mine)
    assert second.news(KEY) == ()
    first.append([Entry(KEY, Verdict.UNPROVEN, 100, theirs)])
    assert second.news(KEY) == tuple(theirs)
    assert second.news(KEY) == ()
    first.append([Entry(KEY, Verdict.UNPROVEN, 100, more)])
    second.append([Entry(KEY, Verdict.UNPROVEN, 1, [mine[0]])])  # before it has seen those
    assert second.news(KEY) is None, "else its own would be news to it"
    assert second.read(KEY).outcomes == (*mine, *theirs, *more, mine[0]), "nothing is deleted"
    first.read(KEY)
    first.append([Entry(KEY, Verdict.DEGRADED, 100, mine)])
    assert second.news(KEY) is None, "of another base"


def test_a_change_that_two_find_is_kept_once(path):
    first, second = EvidenceStore(path), EvidenceStore(path)
    entry = judged(Judge(Criterion()), list(outcomes(700)))
    assert entry.changes
    first.append([entry])
    second.read(KEY)
    second.append([dataclasses.replace(entry, outcomes=[])])
    assert second.read(KEY).changes == tuple(entry.changes)


def test_a_directory_in_the_place_of_the_file_is_the_disks_fault(path, caplog):
    path.mkdir(parents=True)
    store = EvidenceStore(path)
    assert caplog.text.count("cannot be opened") == 1
    store.append([judged(Judge(Criterion()), outcomes(5))])
    assert len(store.read(KEY).outcomes) == 5
