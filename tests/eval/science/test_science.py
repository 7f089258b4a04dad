"""The page says what the committed studies say; results stand together only where they belong together."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from eval import evaluation as evaluations
from eval.evaluation import Evaluation
from eval.grading import GradedAnswer
from eval.provenance import Provenance
from eval.science.__main__ import IMAGES, PAGE, STUDIES, fill
from eval.science.collect import METHODS, SPARSITIES, ScienceError, collect
from eval.science.pairs import best_random, pair, retained
from eval.science.plots import draw
from eval.science.published import published_retention
from eval.science.reading import read
from eval.science.tables import PARTS, cells, missing, retention
from eval.statistics import wilson_interval
from eval.study.paired import compare
from eval.study.results import CellResult, Score, StudyResults, load, save
from eval.subject import Strategy, VariantFacts
from eval.traps import Trap
from tests.plots import words

ITEMS = 20
WHERE = Provenance("a CPU", 2, 2**34, "Linux", "abc", {"torch": "2"}, "2026-01-01T00:00:00+00:00")


def score(right: str, ends: int = ITEMS) -> Score:
    correct = right.count("1")
    low, high = wilson_interval(correct, ITEMS)
    traps = {Trap.LOOP_BEFORE_ANSWER: ITEMS - ends} if ends < ITEMS else {}
    return Score(ITEMS, correct, low, high, traps, 0, 100)


def solved(count: int) -> str:
    """The first ones."""
    return "1" * count + "0" * (ITEMS - count)


def study(
    outcomes: dict[tuple[str, float], str], *, model: str = "coder-0.5b", dense: str = solved(16)
) -> StudyResults:
    """Outcomes by strategy and sparsity."""
    strategies = tuple(dict.fromkeys(name for name, _ in outcomes))

    def cell(name: str, sparsity: float, right: str) -> CellResult:
        comparison = compare([c == "1" for c in dense], [c == "1" for c in right], 0.95) if sparsity else None
        ends = 3 if "reversed" in name else ITEMS
        return CellResult(
            name, f"{model}:s", sparsity, sparsity, None, None, None, score(right, ends), comparison, right
        )

    some = load(STUDIES / "coder-0.5b-humaneval" / "results.json")
    found = [cell(strategies[0], 0.0, dense), *(cell(*key, right) for key, right in outcomes.items())]
    return dataclasses.replace(
        some,
        model={**some.model, "name": model},
        strategies=tuple(Strategy(name, name, "forward") for name in strategies),
        cells=tuple(found),
        provenance=WHERE,
    )


def put(directory: Path, name: str, results: StudyResults) -> None:
    (directory / name).mkdir(exist_ok=True)
    save(results, directory / name / "results.json")


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """All but the sparsest of one model at one task."""
    outcomes = {
        (method, sparsity): solved(count - 3 * number)
        for method, count in zip(METHODS, (16, 12, 9, 10, 1), strict=True)
        for number, sparsity in enumerate(SPARSITIES[:3])
        if count - 3 * number >= 0
    }
    put(tmp_path, "mine", study(outcomes))
    return tmp_path


def test_the_page_and_its_plots_are_what_the_studies_say(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    grounds = collect(STUDIES)
    assert fill(page, grounds) == page, "run `make science-report`"
    assert [name for name in PARTS if f"<!-- {name} -->" not in page] == []
    for plot in draw(grounds, tmp_path):
        assert words(plot) == words(IMAGES / plot.name), "run `make science-report`"


def test_an_unknown_part_is_an_error(studies: Path) -> None:
    with pytest.raises(KeyError):
        fill("<!-- nonsense -->\n<!-- end -->", collect(studies))


def test_what_the_paper_publishes() -> None:
    assert [round(100 * published_retention(sparsity)) for sparsity in SPARSITIES] == [72, 52, 31, 11]
    trained = [round(100 * published_retention(sparsity, trained=True)) for sparsity in SPARSITIES]
    assert trained == [81, 71, 51, 50]


def test_cells_hold_the_figures(studies: Path) -> None:
    table = cells(collect(studies)["coder-0.5b", "humaneval"])
    assert "| dense | 0.0% | 80.0% (58.4 to 91.9) | 100% |  |  | 0.0% |" in table
    # Of 16, 13 and 7: at 20% ours alone solves four more than the paper's 9, six more than random's 7.
    expected = (
        "| taylor2_mixed | 20.0% | 65.0% (43.3 to 81.9) | 81% | +4 -0, p = 0.12 | +6 -0, p = 0.031 | 0.0% |"
    )
    assert expected in table
    assert "| selectivity | 20.0% | 45.0% (25.8 to 65.8) | 56% |  | +2 -0, p = 0.5 | 0.0% |" in table
    assert "| random-42 | 20.0% | 30.0% (14.5 to 51.9) | 38% | +0 -3, p = 0.25 |  | 0.0% |" in table
    assert "| taylor2_mixed, reversed | 10.0% | 5.0% (0.9 to 23.6) | 6% |" in table
    assert "85.0% |" in table  # the answers of the reverse that do not end


def test_random_is_the_better_of_its_seeds(studies: Path) -> None:
    ground = collect(studies)["coder-0.5b", "humaneval"]
    best = best_random(ground, 0.1)
    assert best is not None
    assert best.method == "random-33"
    assert best_random(ground, 0.35) is None
    found = pair(ground.points["taylor2_mixed", 0.1], best)
    assert (found.only_this, found.only_other, found.is_shown_to_differ) == (6, 0, True)


def test_what_nobody_measured_is_missing_and_never_made_up(studies: Path) -> None:
    grounds = collect(studies)
    told = missing(grounds)
    assert "- coder-0.5b at humaneval: taylor2_mixed at 0.35, selectivity at 0.35, random-42 at 0.35" in told
    assert "taylor2_mixed, reversed at 0.2" in told
    assert "- coder-1.5b at gsm8k: everything" in told
    table = retention(grounds)
    assert "| coder-0.5b at humaneval | taylor2_mixed | 80.0% | 100% | 81% | 62% | – |" in table  # noqa: RUF001
    assert "| coder-1.5b at gsm8k | – | – | – | – | – | – |" in table  # noqa: RUF001
    assert "| coder-1.5b at humaneval | published, fine-tuned | 62.8% | 81% | 71% | 51% | 50% |" in table
    assert cells(grounds["coder-1.5b", "gsm8k"]) == "*Not measured yet.*"
    nothing = collect(studies / "mine")
    assert read(nothing.values()) == "*Nothing is measured yet.*"
    plots = {"science-accuracy.svg", "science-retention.svg", "science-corrections.svg"}
    assert {path.name for path in draw(nothing, studies)} == plots


def test_the_reading_follows_the_figures(studies: Path) -> None:
    told = read(collect(studies).values())
    assert "100% against 75% at 10%, 81% against 56% at 20%" in told
    assert "is shown nowhere, not at 10% (p = 0.12), not at 20% (p = 0.12), not at 30% (p = " in told
    assert (
        "the paper's score beside the better of 2 random orders: not shown to differ at 10% (p = 0.5)" in told
    )
    assert "10% removed keep 6% of it, and 85% of the answers do not end. This bears out" in told

    shown = study({("taylor2_mixed", 0.1): solved(16), ("selectivity", 0.1): solved(2)})
    put(studies, "mine", shown)
    assert "random" not in read(collect(studies).values())
    put(studies, "drawn", study({("random-42", 0.1): solved(12)}))
    assert "the paper's score beside a random order: worse at 10%" in read(collect(studies).values())
    assert "is shown everywhere" in read(collect(studies).values())
    put(
        studies,
        "mine",
        study({("taylor2_mixed", 0.1): solved(16), ("taylor2_mixed, reversed", 0.1): solved(9)}),
    )
    assert "does not bear out" in read(collect(studies).values())


def test_other_orders_get_rows_of_their_own(studies: Path) -> None:
    put(studies, "steps", study({("taylor2_mixed in steps of 0.05", 0.2): solved(15)}))
    grounds = collect(studies)
    ground = grounds["coder-0.5b", "humaneval"]
    assert ground.methods[-1] == "taylor2_mixed in steps of 0.05"
    assert retained(ground, ground.points["taylor2_mixed in steps of 0.05", 0.2]) == 15 / 16
    assert "keeps 94% in place of 81% at 20% (+2 -0, p = 0.5)" in read(grounds.values())
    put(studies, "again", study({("taylor2_mixed in steps of 0.05", 0.2): solved(15)}))
    with pytest.raises(
        ScienceError, match=r"steps/results\.json and again/results\.json both have taylor2_mixed in"
    ):
        collect(studies)


def evaluation(results: StudyResults, sparsity: float, delta: str | None, right: str) -> Evaluation:
    answers = {
        f"item/{number}": GradedAnswer(mark == "1", Trap.NONE, "stop", 1, 1, "")
        for number, mark in enumerate(right)
    }
    name = f"coder-0.5b:s{100 * sparsity:g}" + (f"+{delta}" if delta else "")
    fingerprint = results.model["fingerprint"] + "0" * 48
    return Evaluation(
        model={"name": "coder-0.5b", "strategy": "taylor2_mixed", "model": fingerprint, "dtype": "bfloat16"},
        variant=VariantFacts(name, sparsity, None, None),
        task=results.task,
        settings={"sparsity": sparsity, "stop_on_loop": True, "max_num_seqs": 64},
        score=score(right),
        wall_seconds=1.0,
        tokens_per_second=1.0,
        answers=answers,
        provenance=WHERE,
    )


def test_corrected_variants_get_rows_of_their_own(studies: Path) -> None:
    results = load(studies / "mine" / "results.json")
    path = studies / "mine" / "eval-s20-r64.json"
    evaluations.save(evaluation(results, 0.2, "s20-r64", solved(15)), path)
    grounds = collect(studies)
    assert "| coder-0.5b at humaneval | taylor2_mixed + s20-r64 | 80.0% | – | 94% |" in retention(grounds)  # noqa: RUF001
    assert "*taylor2_mixed + s20-r64* keeps 94% in place of 81% at 20%" in read(grounds.values())

    path.write_text("{}")
    with pytest.raises(evaluations.ResultsError, match=r"eval-s20-r64\.json is no result"):
        collect(studies)


def test_what_was_ordered_otherwise_is_held_against_itself(studies: Path) -> None:
    """Of an order that was measured in another way, the corrected variants stand beside its own."""
    results = load(studies / "mine" / "results.json")
    folder = studies / "mine" / "474-prompts"
    folder.mkdir()
    evaluations.save(evaluation(results, 0.2, None, solved(14)), folder / "eval-s20.json")
    evaluations.save(evaluation(results, 0.2, "recovered", solved(15)), folder / "eval-s20-recovered.json")
    grounds = collect(studies)
    told = read(grounds.values())
    assert "*taylor2_mixed, 474 prompts* keeps 88% in place of 81% at 20% (+1 -0" in told
    assert "*taylor2_mixed, 474 prompts + recovered* keeps 94% in place of 88% at 20% (+1 -0" in told
    plot = words(next(plot for plot in draw(grounds, studies) if "corrections" in plot.name))
    assert {"taylor2_mixed, 474 prompts", "taylor2_mixed, 474 prompts + recovered"} <= set(plot)
    assert "selectivity" not in plot


def test_eight_bits_are_a_method_of_their_own(studies: Path) -> None:
    results = load(studies / "mine" / "results.json")
    for sparsity, right in ((0.0, solved(15)), (0.2, solved(12))):
        measured = evaluation(results, sparsity, None, right)
        measured.model["dtype"] = "bfloat16 int8"
        evaluations.save(measured, studies / "mine" / f"eval-s{100 * sparsity:g}-int8.json")
    grounds = collect(studies)
    ground = grounds["coder-0.5b", "humaneval"]
    assert "| dense in int8 | 0.0% | 75.0% (53.1 to 88.8) | 94% |" in cells(ground)
    assert "| coder-0.5b at humaneval | taylor2_mixed in int8 | 80.0% | – | 75% |" in retention(grounds)  # noqa: RUF001
    assert "dense in int8" not in retention(grounds)


@pytest.mark.parametrize(("part", "name"), [("task", "digest"), ("task", "seed"), ("model", "fingerprint")])
def test_results_of_something_else_are_not_put_together(studies: Path, part: str, name: str) -> None:
    put(studies, "other", study({("wanda", 0.2): solved(15)}))
    path = studies / "other" / "results.json"
    document = json.loads(path.read_text())
    document[part][name] = "something else"
    path.write_text(json.dumps(document))
    with pytest.raises(ScienceError, match=rf"other/results\.json and mine/results\.json differ in {name}"):
        collect(studies)


def test_evaluations_from_before_a_study_was_made_anew_are_left_out_and_named(studies: Path) -> None:
    before = load(studies / "mine" / "results.json")
    evaluations.save(evaluation(before, 0.2, "r64", solved(15)), studies / "mine" / "eval-s20-r64.json")
    evaluations.save(evaluation(before, 0.2, None, solved(15)), studies / "mine" / "eval-s20.json")
    anew = dataclasses.replace(before, task={**before.task, "digest": "of a newer grading"})
    put(studies, "mine", anew)
    grounds = collect(studies)
    assert "r64" not in retention(grounds)
    told = missing(grounds)
    assert "mine/eval-s20-r64.json is left out, which another grading judged: ask anew with" in told
    assert "mine/eval-s20.json is left out, which another grading judged: remove it" in told
    assert [source.path for source in grounds["coder-0.5b", "humaneval"].sources] == ["mine/results.json"]

    other = evaluation(before, 0.2, "r32", solved(15))
    other.task["seed"] = 7
    evaluations.save(other, studies / "mine" / "eval-s20-r32.json")
    with pytest.raises(ScienceError, match="differ in digest, seed"):
        collect(studies)


def test_studies_of_other_models_and_tasks_are_left_alone(studies: Path) -> None:
    shutil.copytree(STUDIES / "math-mini", studies / "math-mini")
    put(studies, "server", dataclasses.replace(study({("x", 0.1): solved(1)}), model={"name": "http://h"}))
    assert len(collect(studies)["coder-0.5b", "humaneval"].sources) == 1
