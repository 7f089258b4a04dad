"""A study may be killed at any moment, and what comes of it is the same."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from eval.generate import GenerateError
from eval.provenance import provenance
from eval.study.journal import Journal, JournalError, VariantLine, open_journal
from eval.study.results import StudyResults, load, save, summarise
from eval.study.study import Cell, Study
from eval.subject import Strategy, VariantFacts
from eval.traps import Trap
from tests.eval.study.models import FakeSubject, ParityTask

GOOD = Strategy("good", "taylor2", "forward")
BAD = Strategy("bad", "random-42", "forward")
ITEMS = 100
TASK = ParityTask("d")


def subjects(**changes: int | float) -> list[FakeSubject]:
    return [
        FakeSubject(GOOD, {0.0: 0.9, 0.1: 0.9, 0.2: 0.88, 0.3: 0.5}, **changes),  # type: ignore[arg-type]
        FakeSubject(BAD, {0.1: 0.4, 0.2: 0.0}),
    ]


def run(
    journal: Path,
    asked: list[FakeSubject],
    items: int = ITEMS,
    at_once: int = 8,
    task: ParityTask = TASK,
    stop_on_loop: bool = True,
) -> list[Cell]:
    with open_journal(journal) as opened:
        return asyncio.run(study(opened, items, at_once, task, stop_on_loop).run(asked))


def study(
    journal: Journal,
    items: int = ITEMS,
    at_once: int = 8,
    task: ParityTask = TASK,
    stop_on_loop: bool = True,
) -> Study:
    return Study(
        task,
        task.evaluation(items, 0),
        journal,
        {"stop_on_loop": stop_on_loop},
        command=f"study {items}",
        at_once=at_once,
        grades_at_once=2,
        progress=False,
    )


def results(cells: list[Cell]) -> StudyResults:
    return summarise(
        cells,
        model={"name": "m"},
        task={"name": "parity"},
        settings={"stop_on_loop": True},
        tolerance=0.1,
        confidence=0.95,
        provenance=provenance(),
    )


def test_every_cell_sees_the_same_items(tmp_path: Path) -> None:
    asked = subjects()
    cells = run(tmp_path / "j", asked)
    assert [(c.strategy, c.sparsity) for c in cells] == [
        (GOOD, 0.0), (GOOD, 0.1), (GOOD, 0.2), (GOOD, 0.3), (BAD, 0.1), (BAD, 0.2)
    ]  # fmt: skip
    for subject in asked:
        for sparsity in subject.sparsities:
            prompts = [int(prompt) for at, prompt in subject.asked if at == sparsity]
            assert sorted(prompts) == list(range(ITEMS))
    assert [sum(a.correct for a in c.answers) for c in cells] == [90, 90, 88, 50, 40, 0]
    assert {a.trap for c in cells for a in c.answers if not a.correct} == {Trap.LOOP_BEFORE_ANSWER}


def test_answers_are_in_the_order_of_the_items(tmp_path: Path) -> None:
    cell = run(tmp_path / "j", subjects())[3]
    assert [a.correct for a in cell.answers] == [(7 * i) % 100 < 50 for i in range(ITEMS)]


@pytest.mark.parametrize(("lives", "cut"), [(0, 0), (1, 3), (30, 0), (57, 25), (79, 400)])
def test_killed_and_gone_on_it_finds_the_same(lives: int, cut: int, tmp_path: Path) -> None:
    """`cut` bytes of what was written last are lost as well, as when the machine went down."""
    journal = tmp_path / "answers.jsonl"
    whole = run(tmp_path / "whole", subjects(), items=20)
    with pytest.raises(GenerateError):
        run(journal, subjects(lives=lives), items=20, at_once=4)
    content = journal.read_bytes()
    journal.write_bytes(content[: max(0, len(content) - cut)])

    again = subjects()
    assert run(journal, again, items=20) == whole
    lost = 4 + cut // 100 + 1  # those under way, and lines of more than 100 bytes each
    assert 80 - lives <= len(again[0].asked) <= 80 - lives + lost


def test_a_finished_study_loads_nothing(tmp_path: Path) -> None:
    first = run(tmp_path / "j", subjects(speed=100.0))
    again = subjects(speed=100.0)
    assert run(tmp_path / "j", again) == first
    assert [subject.loads for subject in again] == [0, 0]


def test_every_run_that_asked_for_something_is_kept_with_its_time(tmp_path: Path) -> None:
    with pytest.raises(GenerateError):
        run(tmp_path / "j", subjects(lives=30), items=20)
    for items in (20, 20, 30):  # the second asks for nothing
        run(tmp_path / "j", subjects(), items=items)
    with open_journal(tmp_path / "j") as journal:
        assert [line.command for line in journal.runs] == ["study 20", "study 20", "study 30"]
        assert all(line.seconds > 0 for line in journal.runs)


def test_each_model_is_loaded_once_and_more_items_ask_only_for_those(tmp_path: Path) -> None:
    few = subjects()
    run(tmp_path / "j", few, items=60)
    assert [subject.loads for subject in few] == [1, 1]
    more = subjects()
    run(tmp_path / "j", more)
    assert {int(prompt) for _, prompt in more[0].asked} == set(range(60, 100))


def test_another_model_is_asked_anew(tmp_path: Path) -> None:
    run(tmp_path / "j", subjects())
    changed = subjects()
    changed[0].accuracy[0.3] = 0.4
    run(tmp_path / "j", changed)
    assert {sparsity for sparsity, _ in changed[0].asked} == {0.3}


class LongerTask(ParityTask):
    max_new_tokens = 2 * ParityTask.max_new_tokens


@pytest.mark.parametrize(
    "changed", [{"task": ParityTask("another")}, {"task": LongerTask("d")}, {"stop_on_loop": False}]
)
def test_another_grading_limit_or_setting_is_asked_anew(changed: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path / "j", subjects(), items=5)
    again = subjects()
    run(tmp_path / "j", again, items=5, **changed)
    assert len(again[0].asked) == 20


def test_the_sparsest_answers_come_first_and_the_batch_stays_full(tmp_path: Path) -> None:
    asked = subjects()
    run(tmp_path / "j", asked, at_once=8)
    order = [sparsity for sparsity, _ in asked[0].asked]
    assert order == sorted(order, reverse=True)
    assert asked[0].most_running == 8


def test_throughput_is_the_median_of_the_rounds(tmp_path: Path) -> None:
    cells = run(tmp_path / "j", subjects(speed=100.0))
    assert [c.tokens_per_second for c in cells[:3]] == pytest.approx([100, 100 / 0.9, 125])


def test_only_the_first_strategy_is_timed(tmp_path: Path) -> None:
    asked = subjects(speed=100.0)
    asked[1].speed = 100.0
    cells = run(tmp_path / "j", asked)
    assert [(c.strategy, c.tokens_per_second is not None) for c in cells] == [
        (GOOD, True), (GOOD, True), (GOOD, True), (GOOD, True), (BAD, False), (BAD, False)
    ]  # fmt: skip
    assert asked[1].rounds == 0


def test_cells_that_are_complete_can_be_told_before_the_others_are(tmp_path: Path) -> None:
    run(tmp_path / "j", [FakeSubject(GOOD, {0.0: 0.9, 0.1: 0.9})])
    with pytest.raises(GenerateError):  # sparsest first: 0.3 is complete then, and 0.2 begun
        run(tmp_path / "j", subjects(lives=ITEMS + 10))
    with open_journal(tmp_path / "j") as journal:
        cells = study(journal).complete(subjects())
    assert [(c.strategy, c.sparsity) for c in cells] == [(GOOD, 0.0), (GOOD, 0.1), (GOOD, 0.3)]
    assert all(len(c.answers) == ITEMS for c in cells)


def test_damaged_lines_are_set_aside(tmp_path: Path) -> None:
    journal = tmp_path / "answers.jsonl"
    whole = run(journal, subjects())
    lines = journal.read_text().splitlines()
    lines[7] = lines[7][:20]
    lines[9] = json.dumps({"kind": "answer", "cell": "x"})
    lines.insert(3, "not JSON \x00")
    journal.write_text("\n".join(lines))  # and no end of line at the end

    again = subjects()
    assert run(journal, again) == whole
    assert sum(len(subject.asked) for subject in again) == 2
    assert len((tmp_path / "answers.damaged.jsonl").read_text().splitlines()) == 3
    finished = subjects()
    run(journal, finished)
    assert [subject.loads for subject in finished] == [0, 0]


def test_a_last_line_without_an_end_is_not_glued_to_the_next(tmp_path: Path) -> None:
    journal = tmp_path / "answers.jsonl"
    run(journal, subjects(), items=4)
    journal.write_bytes(journal.read_bytes().rstrip(b"\n"))
    whole = run(journal, subjects(), items=6)
    finished = subjects()
    assert run(journal, finished, items=6) == whole
    assert [subject.loads for subject in finished] == [0, 0]
    assert not (tmp_path / "answers.damaged.jsonl").exists()


def test_a_line_is_in_the_file_once_it_is_added(tmp_path: Path) -> None:
    facts = VariantFacts("m:s0", 0.0, 1, 2)
    with open_journal(tmp_path / "j") as journal:
        journal.add(VariantLine(cell="x", facts=facts, tokens_per_second=None))
        assert (tmp_path / "j").read_text().endswith("}\n")


def test_a_journal_has_one_writer(tmp_path: Path) -> None:
    with (
        open_journal(tmp_path / "j"),
        pytest.raises(JournalError, match="another process"),
        open_journal(tmp_path / "j"),
    ):
        pass
    with open_journal(tmp_path / "j"):
        pass


def test_a_journal_that_cannot_be_written_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="cannot use"), open_journal(tmp_path / "file" / "j"):
        pass


def test_results_say_what_the_answers_amount_to(tmp_path: Path) -> None:
    found = results(run(tmp_path / "j", subjects()))
    assert [cell.score.correct for cell in found.cells] == [90, 90, 88, 50, 40, 0]
    assert found.dense.comparison is None
    s20 = found.of(GOOD)[1].comparison
    assert s20 is not None
    assert (s20.only_dense, s20.only_variant, s20.drop) == (2, 0, pytest.approx(0.02))
    assert found.threshold.sparsity == 0.2
    assert found.threshold.stopped_by == 0.3
    assert found.dense.right.count("1") == 90
    assert found.cells[-1].score.traps == {Trap.LOOP_BEFORE_ANSWER: 100}
    assert found.cells[3].score.traps == {Trap.LOOP_BEFORE_ANSWER: 50}
    assert found.cells[-1].score.cut_off_loops == 100


def test_results_survive_their_file(tmp_path: Path) -> None:
    found = results(run(tmp_path / "j", subjects(speed=100.0)))
    save(found, tmp_path / "results.json")
    assert load(tmp_path / "results.json") == found
