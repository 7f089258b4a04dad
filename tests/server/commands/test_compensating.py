"""`secateur compensate` from the command line to an evaluation and an export that use its delta."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from eval import evaluation as evaluations
from pruning.delta import load_delta
from server.__main__ import EXIT_FAILED, main
from tests.server.commands.counting import profiled_arguments


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a tiny model and a task whose answers are graded."""
    return profiled_arguments(tmp_path_factory.mktemp("compensating"), 80)


@pytest.fixture(scope="module")
def delta(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("deltas") / "small.safetensors"
    fit = ["--sparsity", "0.35", "--rank", "3", "--num-prompts", "40", "--out", str(out)]
    assert main(["compensate", *arguments, *fit]) == 0
    return out


def test_the_delta_is_told_and_nothing_else_is_left(
    arguments: list[str], delta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = load_delta(delta).provenance
    assert (found.sparsity, found.method, found.settings["rank"]) == (0.35, "compensation", 3)
    assert [file.name for file in delta.parent.iterdir()] == [delta.name]
    again = tmp_path / "again.safetensors"
    fit = ["--sparsity", "0.35", "--rank", "3", "--num-prompts", "40"]
    assert main(["compensate", *arguments, *fit, "--out", str(again)]) == 0
    printed = capsys.readouterr().out
    assert f"{found.settings['kl_nats_before']:.5f} without" in printed
    assert f"{found.settings['kl_nats_after']:.5f} with" in printed
    assert load_delta(again).digest == load_delta(delta).digest
    bounded = ["--out", str(tmp_path / "bounded.safetensors"), "--max-memory", "1e-3"]
    assert main(["compensate", *arguments, *fit, *bounded]) == EXIT_FAILED
    assert "the bound is 0.001: raise --max-memory" in capsys.readouterr().err
    left = again.with_name(f"{again.name}.work")
    left.mkdir()  # of a run that was killed while it tidied up
    assert main(["compensate", *arguments, *fit, "--out", str(again)]) == EXIT_FAILED
    assert "is there already" in capsys.readouterr().err


def test_no_foreign_prompts_are_needed(arguments: list[str], delta: Path, tmp_path: Path) -> None:
    """But to make a profile, which is there."""
    place = arguments.index("--distractors")
    own = arguments[:place] + arguments[place + 2 :]
    fit = ["--sparsity", "0.35", "--rank", "3", "--num-prompts", "40", "--out", str(tmp_path / "d")]
    assert main(["compensate", *own, *fit]) == 0
    assert (
        load_delta(tmp_path / "d").layers[1]["down_proj"].a.equal(load_delta(delta).layers[1]["down_proj"].a)
    )
    ranking = ["--num-prompts", "6", "--step", "0.2", "--max-sparsity", "0.4", "--out", str(tmp_path / "r")]
    assert main(["rank", *own, *ranking]) == 0


def test_a_delta_is_merged_into_an_export(arguments: list[str], delta: Path, tmp_path: Path) -> None:
    for name, extra in (("plain", []), ("merged", ["--delta", str(delta)])):
        given = [*arguments[:6], "--sparsity", "0.35", "--out", str(tmp_path / name), *extra]
        assert main(["export", *given]) == 0
    plain, merged = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("plain", "merged"))
    for layer, maps in enumerate(load_delta(delta).layers):
        before, after = (model.model.layers[layer].mlp.down_proj.weight for model in (plain, merged))
        product = maps["down_proj"].product() if maps else torch.zeros(64, 0)
        torch.testing.assert_close((after - before)[:, : product.shape[1]], product, rtol=0, atol=1e-6)
    digest = load_delta(delta).digest
    assert f"| delta | compensation, digest `{digest}`" in (tmp_path / "merged" / "README.md").read_text()
    assert "| delta |" not in (tmp_path / "plain" / "README.md").read_text()


def test_an_evaluation_names_the_delta_and_takes_no_other(
    arguments: list[str], delta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "eval.json"
    asked = ["--items", "2", "--delta", str(delta), "--dtype", "float32", "--max-model-len", "1024"]
    assert main(["eval", *arguments, *asked, "--sparsity", "0.35", "--out", str(out)]) == 0
    found = evaluations.load(out)
    assert found.model["delta"] == load_delta(delta).digest
    assert (found.model["strategy"], found.settings["sparsity"]) == ("taylor2_mixed", 0.35)
    assert found.variant.name.endswith("+small")
    assert main(["eval", *arguments, *asked, "--sparsity", "0.2"]) == EXIT_FAILED
    assert "the widths are" in capsys.readouterr().err
    url = ["--model", "http://127.0.0.1:9", "--task", "arithmetic", "--delta", str(delta)]
    assert main(["eval", *url]) != 0
    assert "--delta corrects a model in this process" in capsys.readouterr().err
