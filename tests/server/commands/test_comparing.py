"""`secateur rank` and `secateur compare` from the command line to an order that is served."""

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.task import TaskError, TaskItem
from eval.tasks.arithmetic import ArithmeticTask
from eval.tasks.item_bank import ItemBank, ItemSplit
from pruning.calibration.calibration import Calibration
from pruning.checkpoints.checkpoint import open_checkpoint
from pruning.errors import RankingError
from pruning.ranking.divergence import DenseReference
from pruning.ranking.ranking_file import load_ranking
from pruning.ranking.widths import widths_at
from server.__main__ import EXIT_FAILED, EXIT_USAGE, main
from server.commands import comparing, stepping
from server.loading import dense_answers
from server.loading.rankings import ranked
from server.settings import CompareSettings, RankSettings, ServeSettings, SettingsError, load_settings
from tests.tiny import tiny_checkpoint

COMPARE = ["--scores", "taylor2,wanda", "--sparsities", "0.2,0.5", "--items", "3"]
RANK = ["--num-prompts", "2", "--step", "0.2", "--max-sparsity", "0.6"]


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ArithmeticTask, "max_new_tokens", 12)


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A tiny model that has been profiled on two prompts."""
    work = tmp_path_factory.mktemp("comparing")
    model = tiny_checkpoint(work / "tiny", max_position_embeddings=1024)
    common = ["--model", str(model), "--cache-dir", str(work / "cache")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArithmeticTask, "max_new_tokens", 12)
        assert main(["profile", *common, "--num-prompts", "2"]) == 0
    return common


def no_answers(*_: object, **__: object) -> None:
    raise AssertionError("the answers are on the disk")


def test_every_candidate_is_measured_at_every_sparsity_and_the_best_is_written(
    common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *common, *COMPARE, "--protect-layers", "0,1", "--out", str(tmp_path)]) == 0

    result = json.loads((tmp_path / "results.json").read_text())
    cells = {
        (
            c["candidate"]["score"],
            c["candidate"]["allocation"],
            c["candidate"]["protect_layers"],
            c["sparsity"],
        )
        for c in result["cells"]
    }
    candidates = [
        ("taylor2", "global", 0), ("taylor2", "global", 1), ("taylor2", "uniform", 0), ("wanda", "uniform", 0)
    ]  # fmt: skip
    assert cells == {(*candidate, sparsity) for candidate in candidates for sparsity in (0.2, 0.5)}
    assert len(result["cells"]) == len(cells)
    assert all(cell["figures"]["kl"]["value"] > 0 for cell in result["cells"])
    assert result["task"]["items"] == result["answers"] == 3

    [protected] = [
        c["widths"] for c in result["cells"] if c["candidate"]["protect_layers"] and c["sparsity"] == 0.2
    ]
    assert protected[0] == protected[2] == 192 > protected[1]

    best = result["standings"][0]["candidate"]
    saved = load_ranking(tmp_path / "ranking.safetensors")
    assert (saved.ranking.digest, saved.allocation) == (best["ranking"], best["allocation"])
    told = capsys.readouterr().out
    assert "Recommended: **" in told
    assert f"{tmp_path / 'ranking.safetensors'}: for serve --ranking" in told


def test_what_a_killed_comparison_measured_is_not_measured_again(
    common: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    divergence = DenseReference.divergence

    def counted(self: DenseReference, *, progress: bool, description: str = "") -> Any:
        if len(measured) == limit:
            raise KeyboardInterrupt
        measured.append(description)
        return divergence(self, progress=progress, description=description)

    monkeypatch.setattr(DenseReference, "divergence", counted)
    limit, arguments = 2, ["compare", *common, *COMPARE, "--out", str(tmp_path)]
    assert main(arguments) == 130
    limit = 100
    assert main(arguments) == 0
    assert len(measured) == 3 * 2 + 1  # three candidates at two sparsities, and the dense model
    assert len(set(measured)) == len(measured)
    first = (tmp_path / "results.json").read_text()

    monkeypatch.setattr(dense_answers, "load_engine", no_answers)
    assert main(arguments) == 0
    assert len(measured) == 7
    assert json.loads((tmp_path / "results.json").read_text())["cells"] == json.loads(first)["cells"]


def test_candidates_that_keep_the_same_neurons_are_measured_once(common: list[str], tmp_path: Path) -> None:
    same = ["--scores", "taylor2_wanda,taylor2_mixed", "--allocations", "uniform", "--sparsities", "0.2,0.5"]
    assert main(["compare", *common, *same, "--items", "2", "--out", str(tmp_path)]) == 0

    assert len(json.loads((tmp_path / "results.json").read_text())["cells"]) == 4
    assert len(list((tmp_path / "cells").iterdir())) == 2 + 1  # two sparsities, and the dense model


def test_an_order_that_two_files_hold_counts_once(common: list[str], tmp_path: Path) -> None:
    """Its KL would be counted twice, and seem far better or far worse than it is."""
    ranked = ["rank", *common, *RANK]
    for name in ("first", "second"):
        assert main([*ranked, "--out", str(tmp_path / name / "order.safetensors")]) == 0
    files = ",".join(str(tmp_path / name / "order.safetensors") for name in ("first", "second"))
    asked = ["compare", *common, *COMPARE, "--rankings", files, "--out", str(tmp_path)]
    assert main(asked) == 0
    result = json.loads((tmp_path / "results.json").read_text())
    told = [(cell["candidate"]["score"], cell["sparsity"]) for cell in result["cells"]]
    assert len(set(told)) < len(told) == 2 * (3 + 1)  # taylor2 has two allocations
    by_score = {each["candidate"]["score"]: each["times_best"]["value"] for each in result["standings"]}
    kl = {
        score: [c["figures"]["kl"]["value"] for c in result["cells"] if c["candidate"]["score"] == score]
        for score in by_score
    }
    [steps] = [score for score in by_score if "in steps" in score]
    expected = prod(k / w for k, w in zip(kl[steps], kl["wanda"], strict=True)) ** 0.5
    assert by_score[steps] / by_score["wanda"] == pytest.approx(expected)


def test_no_item_is_a_calibration_prompt(
    common: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[str] = []
    answers = comparing.measured_answers

    def recorded(settings: Any, checkpoint: Any, prompts: list[str], *rest: Any) -> Any:
        judged.extend(prompts)
        return answers(settings, checkpoint, prompts, *rest)

    monkeypatch.setattr(comparing, "measured_answers", recorded)
    few = ["--scores", "taylor2", "--allocations", "uniform", "--sparsities", "0.2", "--items", "4"]
    assert main(["compare", *common, *few, "--out", str(tmp_path)]) == 0
    assert len(set(judged)) == 4
    assert not set(judged) & {item.prompt for item in ArithmeticTask().calibration(500, 0)}
    assert not set(judged) & {item.prompt for item in ArithmeticTask().evaluation(500, 0)}


def test_an_order_is_chosen_by_other_items_than_it_is_judged_by_while_there_are_enough() -> None:
    items = tuple(TaskItem(f"t/{number}", str(number), "1") for number in range(20))
    task: Any = ItemBank("t", 8, ItemSplit("here", (), items), None)
    chosen, judged = comparing._items(task, 8, seed=3), task.evaluation(12, seed=3)
    assert {item.item_id for item in chosen + judged} == {item.item_id for item in items}
    assert comparing._items(task, 4, seed=3) == chosen[-4:]
    with pytest.raises(TaskError, match="21 were asked for"):
        comparing._items(task, 21, seed=3)


def test_an_order_in_steps_is_written_compared_and_served(common: list[str], tmp_path: Path) -> None:
    file = tmp_path / "steps.safetensors"
    assert main(["rank", *common, *RANK, "--out", str(file)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    saved = load_ranking(file)
    assert saved.allocation == "global"
    assert saved.measured_at == pytest.approx((0, 0.2, 0.4))

    out = tmp_path / "out"
    assert main(["compare", *common, *COMPARE, "--rankings", str(file), "--out", str(out)]) == 0
    cells = json.loads((out / "results.json").read_text())["cells"]
    [cell] = [c for c in cells if c["candidate"]["ranking"] == saved.ranking.digest and c["sparsity"] == 0.5]
    assert tuple(cell["widths"]) == widths_at(saved.ranking, 0.5, "global")

    checkpoint = open_checkpoint(common[1], tmp_path)
    served = ranked(ServeSettings(model=common[1], ranking=file), checkpoint)
    assert served.ranking.digest == saved.ranking.digest
    assert (served.allocation, served.provenance) == ("global", saved.provenance)
    reverse = ranked(ServeSettings(model=common[1], ranking=file, order="reverse"), checkpoint)
    assert torch.equal(reverse.ranking.permutation, saved.ranking.permutation.flip(1))


def test_a_killed_order_goes_on_and_ends_the_same(
    common: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(["rank", *common, *RANK, "--out", str(whole)]) == 0
    measured: list[str] = []
    measure = Calibration.measure

    def counted(self: Calibration, *, progress: bool, description: str = "") -> Any:
        if len(measured) == limit:
            raise KeyboardInterrupt
        measured.append(description)
        return measure(self, progress=progress, description=description)

    monkeypatch.setattr(Calibration, "measure", counted)
    limit = 1
    assert main(["rank", *common, *RANK, "--out", str(killed)]) == 130
    limit = 100
    assert main(["rank", *common, *RANK, "--seed", "1", "--out", str(killed)]) == EXIT_FAILED  # other data
    monkeypatch.setattr(dense_answers, "load_engine", no_answers)
    assert main(["rank", *common, *RANK, "--out", str(killed)]) == 0
    assert measured == ["step 1 of 3", "step 2 of 3", "step 3 of 3"]
    assert load_ranking(killed).ranking.digest == load_ranking(whole).ranking.digest


def test_an_order_is_replaced_only_by_force(common: list[str], tmp_path: Path) -> None:
    file = tmp_path / "order"
    arguments = ["rank", *common, "--num-prompts", "2", "--step", "0.5", "--out", str(file)]
    assert main(arguments) == 0
    written = file.stat().st_mtime_ns
    assert main(arguments) == EXIT_USAGE
    assert file.stat().st_mtime_ns == written
    assert main([*arguments, "--force"]) == 0
    assert file.stat().st_mtime_ns > written


def test_tokens_may_be_weighed_and_memory_bounded(
    common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evenly, weighed = tmp_path / "evenly.safetensors", tmp_path / "weighed.safetensors"
    steps = ["--num-prompts", "2", "--step", "0.3", "--max-sparsity", "0.6"]
    assert main(["rank", *common, *steps, "--out", str(evenly)]) == 0
    assert main(["rank", *common, *steps, "--out", str(weighed), "--reweigh"]) == 0
    assert load_ranking(weighed).ranking.score == "taylor2_mixed, reweighed, in steps of 0.3"
    assert load_ranking(weighed).ranking.digest != load_ranking(evenly).ranking.digest
    for command in ("rank", "profile"):
        asked = [command, *common, "--num-prompts", "2", "--out", str(tmp_path / "n"), "--max-memory", "1e-3"]
        assert main(asked) == EXIT_FAILED
        assert "the bound is 0.001: raise --max-memory" in capsys.readouterr().err


def test_an_order_for_equal_widths_is_not_served_globally(common: list[str], tmp_path: Path) -> None:
    file = tmp_path / "order"
    rank = ["rank", *common, *RANK, "--score", "wanda", "--out", str(file)]
    assert main(rank) == 0
    checkpoint = open_checkpoint(common[1], tmp_path)
    assert ranked(ServeSettings(ranking=file), checkpoint).allocation == "uniform"
    with pytest.raises(SettingsError, match="made for equal widths"):
        ranked(ServeSettings(ranking=file, allocation="global"), checkpoint)


def test_an_order_of_another_model_is_refused(common: list[str], tmp_path: Path) -> None:
    file = tmp_path / "order"
    assert main(["rank", *common, "--num-prompts", "2", "--step", "0.5", "--out", str(file)]) == 0
    other = tiny_checkpoint(tmp_path / "other", seed=1, max_position_embeddings=1024)
    with pytest.raises(RankingError, match="another model"):
        ranked(ServeSettings(ranking=file), open_checkpoint(str(other), tmp_path))


@pytest.mark.parametrize(
    ("kind", "given", "told"),
    [
        (ServeSettings, {"ranking": "r", "score": "wanda"}, "both say which neurons go first"),
        (CompareSettings, {"sparsities": "0,0.1"}, "all candidates are the dense model"),
        (CompareSettings, {"scores": "wanda,wanda"}, "twice"),
        (CompareSettings, {"items": 1}, "items"),
        (RankSettings, {"out": "r", "max_sparsity": 0}, "max_sparsity"),
        (RankSettings, {"out": "r", "step": 0}, "step"),
    ],
)
def test_settings_at_odds_are_refused(kind: Any, given: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        load_settings(kind, given)


def test_scores_that_allow_nothing_are_named(
    common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--scores", "wanda", "--allocations", "global", "--items", "2", "--out", str(tmp_path)]
    assert main(["compare", *common, *arguments]) == EXIT_USAGE
    assert "none of the scores wanda allows global" in capsys.readouterr().err


def test_only_a_score_that_uses_them_measures_distractors(
    common: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def stop(started: Calibration, *_: object, **__: object) -> None:
        seen.append(len(started.distractors))
        raise KeyboardInterrupt

    monkeypatch.setattr(stepping, "rank_in_steps", stop)
    for score in ("taylor2", "selectivity"):
        main(["rank", *common, "--num-prompts", "2", "--score", score, "--out", str(tmp_path / "order")])
    assert seen == [0, 2]
