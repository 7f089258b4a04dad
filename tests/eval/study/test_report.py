"""The page says what the results say, in words that follow the numbers."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from eval.grading import GradedAnswer
from eval.provenance import Provenance
from eval.study.paired import Threshold
from eval.study.plots import draw
from eval.study.report import render, threshold_sentence, write_report
from eval.study.results import ResultsError, StudyResults, StudyRun, load, save, summarise
from eval.study.study import Cell
from eval.subject import Strategy, VariantFacts
from eval.traps import Trap

ITEMS = 200
SELECTIVE = Strategy("taylor2", "taylor2", "forward")
REVERSED = Strategy("taylor2, reversed", "taylor2", "reverse")


def cell(strategy: Strategy, sparsity: float, solved: int, loops: int = 0) -> Cell:
    def answer(number: int) -> GradedAnswer:
        correct = number < solved
        loop = not correct and number >= ITEMS - loops
        trap = Trap.LOOP_BEFORE_ANSWER if loop else Trap.NONE
        return GradedAnswer(correct, trap, "loop" if loop else "stop", 10, 20, "")

    facts = VariantFacts(f"m:s{100 * sparsity:g}", sparsity, round(1e6 * (1 - sparsity)), 2_000_000)
    return Cell(strategy, sparsity, facts, 100.0 / (1 - sparsity), tuple(map(answer, range(ITEMS))))


@pytest.fixture(scope="module")
def results() -> StudyResults:
    cells = [
        cell(SELECTIVE, 0.0, 180), cell(SELECTIVE, 0.1, 179), cell(SELECTIVE, 0.2, 150, loops=20),
        cell(REVERSED, 0.1, 4, loops=100), cell(REVERSED, 0.2, 0, loops=200),
    ]  # fmt: skip
    return summarise(
        cells,
        model={"name": "m"},
        task={"name": "t", "items": ITEMS},
        settings={"stop_on_loop": True},
        tolerance=0.03,
        confidence=0.95,
        provenance=Provenance("a CPU", 2, 2**34, "Linux", "abc", {"torch": "2"}, "2026-01-01T00:00:00+00:00"),
    )


def test_tables_hold_the_figures(results: StudyResults) -> None:
    page = render(results, [])
    assert "| taylor2 | 90.0% (85.1 to 93.4) | 89.5% (84.5 to 93.0) | 75.0% (68.6 to 80.5) |" in page
    assert "| taylor2, reversed | 90.0% (85.1 to 93.4) | 2.0% (0.8 to 5.0) | 0.0% (0.0 to 1.9) |" in page
    assert "+15.0 (at most" in page
    assert "+0 -30, p = 1.9e-09" in page
    assert "| 0.2 | 0.2000 | 0.80 M | 2.00 MB | 125 | 1.25 x |" in page
    assert "| taylor2 | 0.0% | 0.0% | 10.0% |" in page
    assert "320 looping answers were ended early" in page
    assert "cpu a CPU; cores 2; memory 16 GiB" in page


def test_what_was_not_asked_yet_is_a_dash(results: StudyResults) -> None:
    assert "not all items have been asked yet" not in render(results, [])
    page = render(replace(results, cells=results.cells[:-1]), [])
    assert "| taylor2, reversed | 90.0% (85.1 to 93.4) | 2.0% (0.8 to 5.0) | - |" in page
    assert "not all items have been asked yet" in page


def test_it_says_by_which_commands_and_in_what_time(results: StudyResults) -> None:
    assert "| how |" not in render(results, [])
    runs = (StudyRun("secateur study --a", 3_600.0), StudyRun("secateur study --a", 59.6))
    assert "| how | `secateur study --a`; took 1 h 1 min 0 s in 2 runs |" in render(
        replace(results, runs=runs), []
    )
    more = replace(results, runs=(*runs[1:], StudyRun("secateur study --b", 1.0)))
    assert "| `secateur study --a`; `secateur study --b`; took 0 h 1 min 1 s in 2 runs |" in render(more, [])


@pytest.mark.parametrize(
    ("items", "solved", "told"),
    [
        (
            200,
            180,
            "80% probability 200 items show a drop of 3.1 points if it is all that sets the two apart",
        ),
        (200, 180, "one of 8.7 if they fail at items of their own"),
        (10, 2, "10 items show no drop, not even that of all accuracy"),
        (200, 0, "no drop to be seen below"),
    ],
)
def test_it_says_what_so_many_items_can_show(
    results: StudyResults, items: int, solved: int, told: str
) -> None:
    score = replace(results.dense.score, items=items, correct=solved)
    cells = (replace(results.dense, score=score), *results.cells[1:])
    assert told in render(replace(results, cells=cells), [])


def test_findings_follow_from_the_figures(results: StudyResults) -> None:
    page = render(results, [])
    assert "Up to **0.1** is safe" in page
    assert "At 0.2 that could not be shown" in page
    assert "*taylor2*: a loss shows from 0.2 on; at 0.2 it solves 75.0%." in page
    assert "*taylor2, reversed*: a loss shows from 0.1 on" in page


def test_every_table_has_rows_of_one_length(results: StudyResults) -> None:
    for table in re.findall(r"(?:^\|.*\n)+", render(results, []), flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


@pytest.mark.parametrize(
    ("sparsity", "stopped_by", "items", "solved", "told"),
    [
        (0.2, 0.3, 200, 180, "Up to **0.2** is safe"),
        (0.0, 0.1, 200, 180, "**No sparsity** studied is safe"),
        (0.35, None, 200, 180, "Every sparsity studied, up to **0.35**, is safe"),
        (0.0, 0.1, 20, 18, "takes 88 items even where no answer differs, and there were 20"),
        (0.0, 0.1, 40, 0, "solves 0 of 40 items, and only where it is shown to solve more than 6%"),
    ],
)
def test_each_outcome_has_its_words(
    sparsity: float, stopped_by: float | None, items: int, solved: int, told: str
) -> None:
    assert told in threshold_sentence(Threshold(sparsity, stopped_by, 0.03, 0.95, items, 88, solved))


def test_what_nobody_measured_is_not_told(results: StudyResults, tmp_path: Path) -> None:
    cells = tuple(
        replace(c, tokens_per_second=None, parameters=None, weight_bytes=None) for c in results.cells
    )
    unknown = replace(results, cells=cells)
    assert "Throughput was not measured" in render(unknown, [])
    assert {name for name, _ in draw(unknown, tmp_path)} == {"accuracy.svg", "traps.svg"}


def test_the_report_has_its_plots_and_the_same_results_the_same_bytes(
    results: StudyResults, tmp_path: Path
) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    for directory in (first, second):
        directory.mkdir()
        save(results, directory / "results.json")
        write_report(load(directory / "results.json"), directory)
    names = {"report.md", "results.json", "accuracy.svg", "traps.svg", "memory.svg", "throughput.svg"}
    assert {file.name for file in first.iterdir()} == names
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    page = (first / "report.md").read_text()
    assert set(re.findall(r"!\[[^]]*\]\(([^)]*)\)", page)) == {name for name in names if name.endswith("svg")}


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ResultsError, match=r"x\.json"):
        load(tmp_path / "x.json")
