"""The page of the study of recovery is what its results say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.plots import words
from training.recovery import Options, _digest
from training.recovery_report import ALONE, PLOT_FILE, REPORT_FILE, RESULTS_FILE, write_report

STUDY = Path(__file__).parents[2] / "docs" / "recovery" / "math-mini"


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads((STUDY / RESULTS_FILE).read_text())


def test_the_page_and_the_plot_are_those_of_the_results(results: dict, tmp_path: Path) -> None:
    write_report(results, tmp_path)
    assert (tmp_path / REPORT_FILE).read_bytes() == (STUDY / REPORT_FILE).read_bytes()
    assert words(tmp_path / PLOT_FILE) == words(STUDY / PLOT_FILE)


def test_what_other_settings_found_is_not_taken_for_theirs(tmp_path: Path) -> None:
    options = Options(prompts=192, epochs=1, items=300, work=tmp_path)
    others = [replace(options, prompts=64), replace(options, epochs=2), replace(options, items=1_000)]
    assert len({_digest(each) for each in (options, *others)}) == 4
    assert _digest(replace(options, work=tmp_path / "other")) == _digest(options)


def test_counts_are_those_of_the_outcomes(results: dict) -> None:
    cells = [results["dense"]]
    for variant in results["variants"]:
        cells += [variant["before"], *variant["corrected"]]
        for cell in variant["corrected"]:
            pairs = list(zip(variant["before"]["outcomes"], cell["outcomes"], strict=True))
            assert cell["against_before"]["only_first"] == pairs.count(("1", "0"))
            assert cell["against_before"]["only_second"] == pairs.count(("0", "1"))
        seeds = {cell["seed"] for cell in variant["corrected"] if cell["kind"] == ALONE}
        assert seeds <= set(results["training"]["seeds"])
    for cell in cells:
        assert cell["solved"] == cell["outcomes"].count("1")
        assert cell["items"] == len(cell["outcomes"])
