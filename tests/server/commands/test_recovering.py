"""`secateur recover` from the command line to an evaluation and an export that use what it trained."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from eval import evaluation as evaluations
from pruning.delta import PROJECTIONS, Delta, load_delta
from pruning.errors import DeltaError
from pruning.recovery.training import Trainer
from server.__main__ import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, main
from server.commands import recovering
from server.loading import rankings
from tests.server.commands.counting import profiled_arguments

ROOT = Path(__file__).parents[3]
TRAINING = [
    *("--num-prompts", "160", "--epochs", "8", "--rank", "8", "--batch-tokens", "512", "--row-tokens", "256"),
    *("--top-tokens", "8", "--dtype", "float32", "--learning-rate", "1e-3"),
]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a tiny model whose answers end by chance, one in six, and a task that is graded."""
    eos = list(range(2, 320, 6))
    return profiled_arguments(tmp_path_factory.mktemp("recovering"), 400, eos_token_id=eos)


@pytest.fixture(scope="module")
def delta(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("deltas") / "small.safetensors"
    assert main(["recover", *arguments, *TRAINING, "--sparsity", "0.35", "--out", str(out)]) == 0
    return out


def test_the_delta_and_its_report_are_told_and_nothing_else_is_left(
    arguments: list[str], delta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sorted(file.name for file in delta.parent.iterdir()) == ["small.report.json", "small.safetensors"]
    found = load_delta(delta)
    assert (found.provenance.sparsity, found.provenance.method) == (0.35, "recovery")
    assert all(set(maps) == set(PROJECTIONS) for maps in found.layers)
    report = json.loads((delta.parent / "small.report.json").read_text())
    assert report["deltas"][0]["digest"] == found.digest
    assert report["deltas"][0]["parameters"] == found.parameters
    assert report["ranking"] == found.provenance.ranking
    assert len(report["steps_taken"]) == report["planned_steps"] == report["steps"] > 4
    assert report["held_out"][-1]["step"] == report["planned_steps"]
    assert report["settings"]["rank"] == 8
    assert report["trained_answers"] + report["held_out_answers"] == report["answers"]
    [told] = [entry["held_out_kl_nats"] for entry in report["deltas"]]
    assert told["before"] == pytest.approx(report["held_out"][0]["divergence"][0])
    assert told["after"] < told["before"]
    again = tmp_path / "again.safetensors"
    assert main(["recover", *arguments, *TRAINING, "--sparsity", "0.35", "--out", str(again)]) == 0
    printed = capsys.readouterr().out
    assert f"{told['before']:.5f} without, {told['after']:.5f} with" in printed
    assert load_delta(again).digest == found.digest


def test_a_training_that_had_ended_ends_the_same_after_an_interruption(
    arguments: list[str], delta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the files are written: of two deltas the first is there. Then no step is taken again."""
    asked = ["recover", *arguments, *TRAINING, "--sparsities", "0.2,0.35", "--out", str(tmp_path / "d.st")]
    save = Delta.save

    def interrupted(self: Delta, path: Path) -> None:
        if path.name == "d-s35.st":
            raise KeyboardInterrupt
        save(self, path)

    with monkeypatch.context() as patched:
        patched.setattr(Delta, "save", interrupted)
        assert main(asked) == EXIT_INTERRUPTED
    assert {file.name for file in tmp_path.iterdir()} == {"d-s20.st", "d.st.work"}
    first = load_delta(tmp_path / "d-s20.st").digest
    with monkeypatch.context() as patched:
        patched.setattr("pruning.recovery.training.Trainer._step", None)
        assert main(asked) == 0
    assert {file.name for file in tmp_path.iterdir()} == {"d-s20.st", "d-s35.st", "d.report.json"}
    deltas = [load_delta(tmp_path / f"d-s{sparsity}.st") for sparsity in (20, 35)]
    assert deltas[0].digest == first
    wide, narrow = (delta.layers[1]["down_proj"] for delta in deltas)
    assert torch.equal(wide.a[:, : narrow.a.shape[1]], narrow.a), "one adapter, cut to each width"
    assert torch.equal(wide.b, narrow.b)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_several_processes_go_on_with_what_one_began(
    device: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take the steps that it would have taken, and only one of them writes and talks."""
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("no two CUDA devices")
    asked = ["recover", *arguments, *TRAINING, "--row-tokens", "170", "--sparsities", "0.2,0.35"]
    asked += ["--device", device]
    whole, shared = tmp_path / "whole.st", tmp_path / "shared.st"
    assert main([*asked, "--out", str(whole)]) == 0
    step = Trainer._step

    def interrupted(self: Trainer, number: int, started: float) -> None:
        if number == 5:
            raise KeyboardInterrupt
        step(self, number, started)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_step", interrupted)
        assert main([*asked, "--out", str(shared), "--save-seconds", "0"]) == EXIT_INTERRUPTED
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "server"]
    done = subprocess.run([*launch, *asked, "--out", str(shared)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" steps in ") == 1
    assert "going on after step 5" in done.stderr
    one, two = (json.loads((tmp_path / f"{name}.report.json").read_text()) for name in ("whole", "shared"))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert len(one["steps_taken"]) == len(two["steps_taken"]) > 8
    for loss in ("cross_entropy", "divergence"):
        for told in ("steps_taken", "held_out"):
            for alone, together in zip(one[told], two[told], strict=True):
                assert together[loss] == pytest.approx(alone[loss], rel=1e-4)
    for sparsity in (20, 35):
        alone, together = (load_delta(tmp_path / f"{name}-s{sparsity}.st") for name in ("whole", "shared"))
        for maps, same in zip(alone.layers, together.layers, strict=True):
            for name in PROJECTIONS:
                torch.testing.assert_close(same[name].product(), maps[name].product(), rtol=0.02, atol=2e-4)
    assert not list(tmp_path.glob("*.work"))


def test_what_is_there_already_is_not_overwritten(
    arguments: list[str], delta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = delta.read_bytes()
    asked = ["recover", *arguments, *TRAINING, "--sparsity", "0.35", "--out", str(delta)]
    assert main(asked) == EXIT_FAILED
    work = delta.with_name(f"{delta.name}.work")
    work.mkdir()  # of a removal that was interrupted
    assert main(asked) == EXIT_FAILED
    work.rmdir()
    assert capsys.readouterr().err.count("is there already; choose another --out, or remove it") == 2
    assert delta.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-prompts", "6"], "of the dense model's answers ended; at least 10 are needed: give more"),
        (["--max-memory", "0.001"], "--max-memory allows 0.00: raise it, or lower --row-tokens"),
        (["--top-tokens", "320"], "of a vocabulary of 320: at most 319 make sense"),
        (["--num-prompts", "1000"], "1000 were asked for: ask for fewer or give more"),
        (["--learning-rate", "9"], "was better than the first. Give more prompts (160), or lower"),
    ],
)
def test_what_cannot_be_is_told_with_the_way_out(
    arguments: list[str],
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["--sparsity", "0.35", "--out", str(tmp_path / "d"), *TRAINING, *options]
    assert main(["recover", *arguments, *asked]) == EXIT_FAILED
    assert message in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_a_sequence_longer_than_a_row_counts_in_the_memory(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows fit into what is allowed; the longest answer is a row of its own, and does not."""
    asked = ["--sparsity", "0.35", "--out", str(tmp_path / "d"), *TRAINING, "--recompute", "off"]
    few = ["--row-tokens", "8", "--max-memory", "0.003"]
    assert main(["recover", *arguments, *asked, *few]) == EXIT_FAILED
    assert "set --recompute on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "neither --sparsity nor --sparsities"),
        (["--sparsity", "0.2", "--dtype", "float16"], "too small for float16"),
        (["--sparsities", "0,0.2"], "at sparsity 0 there is nothing to recover"),
        (["--sparsities", "0.1,0.2", "--init", "x"], "init names 1 deltas for 2 variants"),
    ],
)
def test_what_makes_no_sense_is_a_wrong_use(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recover", "--out", str(tmp_path / "d"), *options]) == EXIT_USAGE
    assert message in capsys.readouterr().err


def test_unfinished_work_of_another_order_or_damaged_is_refused(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["recover", *arguments, *TRAINING, "--sparsity", "0.35", "--out", str(tmp_path / "d")]
    with monkeypatch.context() as patched:
        patched.setattr(Delta, "save", lambda *_: (_ for _ in ()).throw(DeltaError("the disk is full")))
        assert main(asked) == EXIT_FAILED
    assert main([*asked, "--score", "wanda"]) == EXIT_FAILED
    err = capsys.readouterr().err
    assert "is of an unfinished training with other settings" in err
    assert main([*asked, "--learning-rate", "0.123"]) == EXIT_FAILED
    assert "is of an unfinished training with other settings" in capsys.readouterr().err
    progress = tmp_path / "d.work" / recovering.PROGRESS_FILE
    whole = progress.read_bytes()
    progress.write_bytes(whole[:-7])
    assert main(asked) == EXIT_FAILED
    assert "is damaged" in capsys.readouterr().err
    progress.write_bytes(whole)
    assert main(asked) == 0


def test_training_goes_on_from_a_delta_of_that_variant_order_and_task_only(
    arguments: list[str],
    delta: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["recover", *arguments, *TRAINING, "--out", str(tmp_path / "d"), "--init", str(delta)]
    assert main([*asked, "--sparsity", "0.2"]) == EXIT_FAILED
    assert "the widths are" in capsys.readouterr().err
    assert main([*asked, "--sparsity", "0.35", "--order", "reverse"]) == EXIT_FAILED
    assert "the ranking's digest is" in capsys.readouterr().err
    foreign = load_delta(delta)
    provenance = dataclasses.replace(foreign.provenance, task="humaneval")
    dataclasses.replace(foreign, provenance=provenance).save(tmp_path / "humaneval.st")
    with monkeypatch.context() as patched:
        patched.setitem(rankings._USES_UP, "humaneval", "counting")
        other = [*asked[: asked.index("--init")], "--init", str(tmp_path / "humaneval.st")]
        assert main([*other, "--sparsity", "0.35"]) == EXIT_FAILED
        assert "was made for humaneval, of both halves of counting" in capsys.readouterr().err
    assert main([*asked, "--sparsity", "0.35"]) == 0
    after = load_delta(delta).provenance.settings["kl_nats_after"]
    report = json.loads((tmp_path / "d.report.json").read_text())
    assert report["starts"] == [load_delta(delta).digest]
    assert report["deltas"][0]["held_out_kl_nats"]["before"] > after, "of the variant alone"
    assert {pair.rank for maps in load_delta(tmp_path / "d").layers for pair in maps.values()} == {8 + 8}
    assert load_delta(tmp_path / "d").provenance.settings["start"] == load_delta(delta).digest
    assert report["held_out"][0]["divergence"][0] == pytest.approx(after, rel=1e-3)


def test_each_of_several_variants_goes_on_from_its_own_delta(
    arguments: list[str], delta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, both = tmp_path / "s20", tmp_path / "both.st"
    assert main(["recover", *arguments, *TRAINING, "--sparsity", "0.2", "--out", str(small)]) == 0
    asked = ["recover", *arguments, *TRAINING, "--sparsities", "0.2,0.35", "--out", str(both), "--init"]
    assert main([*asked, f"{delta},{delta}"]) == EXIT_FAILED
    assert "the widths are" in capsys.readouterr().err
    assert main([*asked, f"{delta},{small}"]) == 0, "in any order"
    report = json.loads((tmp_path / "both.report.json").read_text())
    starts = [load_delta(file) for file in (small, delta)]
    assert report["starts"] == [start.digest for start in starts]
    assert report["held_out"][0]["divergence"] == pytest.approx(
        [start.provenance.settings["kl_nats_after"] for start in starts], rel=1e-3
    )


def test_all_maps_are_merged_into_an_export(arguments: list[str], delta: Path, tmp_path: Path) -> None:
    """Exactly but for one rounding: in float32 the weights are the sums."""
    for name, extra in (("plain", []), ("merged", ["--delta", str(delta)])):
        given = [*arguments[:6], "--sparsity", "0.35", "--out", str(tmp_path / name), *extra]
        assert main(["export", *given]) == 0
    plain, merged = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("plain", "merged"))
    for layer, maps in enumerate(load_delta(delta).layers):
        for name, pair in maps.items():
            part = "self_attn" if name[0] in "qkvo" else "mlp"
            before, after = (
                getattr(getattr(model.model.layers[layer], part), name).weight for model in (plain, merged)
            )
            expected = before.clone()
            product = pair.product()
            expected[: product.shape[0], : product.shape[1]] += product
            assert torch.equal(after, expected), name
            assert not torch.equal(after, before), name
    assert "| delta | recovery, digest" in (tmp_path / "merged" / "README.md").read_text()


def test_an_evaluation_takes_the_delta(arguments: list[str], delta: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval.json"
    asked = ["--items", "2", "--delta", str(delta), "--dtype", "float32", "--max-model-len", "1024"]
    assert main(["eval", *arguments, *asked, "--sparsity", "0.35", "--out", str(out)]) == 0
    assert evaluations.load(out).model["delta"] == load_delta(delta).digest


@pytest.mark.gpu
def test_the_same_command_trains_on_a_gpu(arguments: list[str], delta: Path, tmp_path: Path) -> None:
    """And comes to about the same: its sums are rounded in another order."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    out = tmp_path / "gpu.safetensors"
    asked = [*arguments, *TRAINING, "--sparsity", "0.35", "--device", "cuda", "--out", str(out)]
    assert main(["recover", *asked]) == 0
    one, other = (
        json.loads(file.with_suffix(".report.json").read_text())["deltas"][0]["held_out_kl_nats"]
        for file in (delta, out)
    )
    assert other["before"] == pytest.approx(one["before"], rel=0.05)
    assert other["after"] == pytest.approx(one["after"], rel=0.1)
