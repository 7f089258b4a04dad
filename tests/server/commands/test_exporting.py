"""`secateur export` from the command line to a model that transformers loads, and what its card says."""

import json
import re
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from pruning.calibration.profile import load
from pruning.ranking.widths import exact_sparsity, widths_at
from server.__main__ import EXIT_FAILED, main
from server.loading.profiles import open_model
from server.loading.rankings import ranking_of
from server.settings import ServeSettings
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a tiny model that has been profiled."""
    work = tmp_path_factory.mktemp("exporting")
    model = tiny_checkpoint(work / "tiny", max_position_embeddings=1024)
    prompts = work / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"count to {i}"}) for i in range(16)))
    common = ["--model", str(model), "--task", "counting", "--cache-dir", str(work / "cache")]
    files = ["--prompts", str(prompts), "--distractors", str(prompts), "--num-prompts", "3"]
    assert main(["profile", *common, *files]) == 0
    return common


def served_widths(arguments: list[str], sparsity: float, allocation: str) -> tuple[int, ...]:
    """As `secateur serve` with the same arguments chooses them."""
    given = dict(zip((name[2:].replace("-", "_") for name in arguments[::2]), arguments[1::2], strict=True))
    settings = ServeSettings(**given)
    [profile] = (Path(given["cache_dir"]) / "profiles").iterdir()
    ranking = ranking_of(settings, load(profile))
    assert open_model(settings).architecture.intermediate_size == 192
    return widths_at(ranking, sparsity, allocation)  # type: ignore[arg-type]


def test_uniform_is_a_smaller_model(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", *arguments, "--sparsity", "0.35", "--uniform", "--out", str(out)]) == 0

    width = served_widths(arguments, 0.35, "uniform")[0]
    assert width < 192
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.intermediate_size == width
    assert capsys.readouterr().out == f"{out}\n  {4 * model.num_parameters():,} bytes of weights\n"
    card = (out / "README.md").read_text()
    assert f"| neurons | {width} in every layer, of 192 |" in card
    assert "zeros" not in card


def test_widths_per_layer_are_the_served_ones_and_the_zeros_are_told(
    arguments: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    assert main(["export", *arguments, "--sparsity", "0.35", "--out", str(out)]) == 0

    widths = served_widths(arguments, 0.35, "global")
    assert len(set(widths)) > 1, "the profile is too even for this test"
    model = AutoModelForCausalLM.from_pretrained(out)
    for layer, width in zip(model.model.layers, widths, strict=True):
        assert layer.mlp.gate_proj.weight.any(dim=1).tolist() == [n < width for n in range(max(widths))]
    assert "filled up with zeros, which saves neither bytes nor time; --uniform does" in caplog.text
    card = (out / "README.md").read_text()
    assert f"| neurons | {', '.join(map(str, widths))}, first layer to last, of 192 |" in card
    assert "filled up with zeros" in card


def test_the_card_says_what_it_was_made_of(arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    chosen = ["--score", "wanda", "--order", "reverse", "--sparsity", "0.3"]
    assert main(["export", *arguments, *chosen, "--out", str(out)]) == 0

    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    [path] = (Path(given["--cache-dir"]) / "profiles").iterdir()
    profile = load(path)
    ranking = ranking_of(ServeSettings(score="wanda", order="reverse"), profile)
    exact = exact_sparsity(widths_at(ranking, 0.3, "uniform"), 192)
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "# tiny without 30% of its MLP neurons" in card
    for told in (
        f"| model | tiny, digest `{profile.provenance.model}` |",
        f"| tokenizer | digest `{profile.provenance.tokenizer}` |",
        f"| task | counting, digest of its prompts `{profile.provenance.data}` |",
        f"in float32, digest `{profile.digest}` |",
        f"| ranking | score wanda, order reverse, digest `{ranking.digest}` |",
        f"| sparsity | 0.3 asked for, {exact:.6f} exactly |",
        "| allocation | uniform |",
    ):
        assert told in card, told
    assert "accuracy has not been measured" in card
    assert not re.search(r"\d%(?! of its MLP)", card), "no number that nobody has measured"


def test_the_dtype_is_the_checkpoints_unless_asked_for(arguments: list[str], tmp_path: Path) -> None:
    for flags, dtype in (([], "float32"), (["--dtype", "bfloat16"], "bfloat16")):
        out = tmp_path / dtype
        assert main(["export", *arguments, "--sparsity", "0.3", "--uniform", "--out", str(out), *flags]) == 0
        assert json.loads((out / "config.json").read_text())["dtype"] == dtype
        assert str(AutoModelForCausalLM.from_pretrained(out).dtype) == f"torch.{dtype}"


def test_a_directory_in_use_is_one_line_and_a_status(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").write_text("mine")
    assert main(["export", *arguments, "--sparsity", "0.3", "--out", str(tmp_path)]) == EXIT_FAILED
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"secateur: {tmp_path} is there already and not an empty directory; choose another --out"
