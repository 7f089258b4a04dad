"""An export is the sliced model, whole or not at all, and loads with plain transformers."""

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pruning.checkpoints.checkpoint import open_checkpoint
from pruning.errors import ExportError, ModelError, ProfileError
from pruning.export import export as export_module
from pruning.export.export import export_checkpoint
from pruning.ranking.ranking import Ranking
from pruning.slicing import slice_model
from tests.tiny import FAMILIES, tiny_checkpoint, tiny_ranking

WEIGHTS = "model.safetensors"
TOKENS = torch.tensor([[5, 80, 81, 40, 7, 9], [30, 31, 60, 61, 62, 63]])
UNIFORM, UNEVEN = (64, 64, 64), (40, 160, 8)


def export(
    model: Path,
    out: Path,
    widths: tuple[int, ...] = UNIFORM,
    *,
    dtype: torch.dtype | None = None,
    order: Ranking | None = None,
) -> Path:
    checkpoint = open_checkpoint(str(model), out / "cache")
    order = tiny_ranking() if order is None else order
    export_checkpoint(checkpoint, order, widths, out, dtype=dtype, card="# Card", progress=False)
    return out


def load(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(original, tmp_path / "tiny"))


@pytest.mark.parametrize("family", FAMILIES)
def test_one_width_for_all_is_the_sliced_model_bit_by_bit(family: str, tmp_path: Path) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", family)
    exported = load(export(dense, tmp_path / "out"))
    sliced = slice_model(load(dense), tiny_ranking(), UNIFORM)

    assert exported.config.intermediate_size == 64
    expected, found = sliced.state_dict(), exported.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_uneven_widths_are_filled_up_with_neurons_that_change_nothing(family: str, tmp_path: Path) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", family)
    exported = load(export(dense, tmp_path / "out", UNEVEN))
    sliced = slice_model(load(dense), tiny_ranking(), UNEVEN)

    assert exported.config.intermediate_size == max(UNEVEN)
    torch.testing.assert_close(exported(TOKENS).logits, sliced(TOKENS).logits, rtol=1e-5, atol=1e-5)
    for layer, width in zip(exported.model.layers, UNEVEN, strict=True):
        assert not layer.mlp.gate_proj.weight[width:].any()
        assert not layer.mlp.up_proj.weight[width:].any()
        assert not layer.mlp.down_proj.weight[:, width:].any()


def test_all_else_comes_along(model: Path, tmp_path: Path) -> None:
    (model / "LICENSE.txt").write_text("Do as you like.")
    (model / "training.json").write_text("{}")
    out = export(model, tmp_path / "parent" / "out")

    kept = {"LICENSE.txt", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    kept.add("chat_template.jinja")
    assert {file.name for file in out.iterdir()} == kept | {"README.md", "config.json", WEIGHTS}
    assert all((out / name).read_bytes() == (model / name).read_bytes() for name in kept)
    assert (out / "README.md").read_text() == "# Card"
    assert AutoTokenizer.from_pretrained(out).decode([65]) == AutoTokenizer.from_pretrained(model).decode(
        [65]
    )
    before, after = (json.loads((path / "config.json").read_text()) for path in (model, out))
    assert {**before, "intermediate_size": 64} == after


def test_the_dtype_is_kept_or_the_one_asked_for(tmp_path: Path) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", dtype=torch.bfloat16)
    kept = load_file(export(dense, tmp_path / "kept") / WEIGHTS)
    cast = export(dense, tmp_path / "cast", dtype=torch.float32)

    assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16}
    assert all(torch.equal(tensor, kept[name].float()) for name, tensor in load_file(cast / WEIGHTS).items())
    assert load(cast).dtype == torch.float32
    assert load(tmp_path / "kept").dtype == torch.bfloat16


def test_integers_are_not_cast(model: Path, tmp_path: Path) -> None:
    tensors = {**load_file(model / WEIGHTS), "position_ids": torch.arange(4)}
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    exported = load_file(export(model, tmp_path / "out", dtype=torch.float16) / WEIGHTS)
    assert exported["position_ids"].dtype == torch.int64
    assert exported["model.norm.weight"].dtype == torch.float16


def test_tied_embeddings_stay_tied_and_others_apart(tmp_path: Path) -> None:
    for tied in (True, False):
        dense = tiny_checkpoint(tmp_path / f"dense-{tied}", tie_word_embeddings=tied)
        out = export(dense, tmp_path / f"out-{tied}")
        assert ("lm_head.weight" in load_file(out / WEIGHTS)) is not tied
        exported = load(out)
        assert exported.config.tie_word_embeddings is tied
        assert (exported.lm_head.weight is exported.model.embed_tokens.weight) is tied


def test_a_head_that_is_not_there_is_the_embedding_as_it_is_served(model: Path, tmp_path: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    exported = load(export(model, tmp_path / "out"))
    assert torch.equal(exported.lm_head.weight, exported.model.embed_tokens.weight)


def test_shards_stay_shards(model: Path, tmp_path: Path) -> None:
    whole = load_file(export(model, tmp_path / "whole", UNEVEN) / WEIGHTS)
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(model, max_shard_size="100KB")
    (model / WEIGHTS).unlink()
    out = export(model, tmp_path / "sharded", UNEVEN)

    shards = sorted(file.name for file in model.glob("*.safetensors"))
    assert len(shards) > 2
    assert sorted(file.name for file in out.glob("*.safetensors")) == shards
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    found = {name: tensor for shard in shards for name, tensor in load_file(out / shard).items()}
    assert set(index["weight_map"]) == set(found) == set(whole)
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert torch.equal(load(out)(TOKENS).logits, load(tmp_path / "whole")(TOKENS).logits)


def test_what_is_there_is_never_written_over(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    for name in ("file", "full", "tiny"):
        with pytest.raises(ExportError, match=rf"{tmp_path / name} is there already"):
            export(model, tmp_path / name)
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "notes").read_text() == "mine"


def test_remains_of_a_killed_export_and_of_a_new_file_system_are_no_content(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "volume"
    (out / "lost+found").mkdir(parents=True)
    (out / f"{export_module.WORK_PREFIX}0123").mkdir()

    def interrupted(self: Path, target: Path) -> Path:
        if self.name == "config.json":
            raise KeyboardInterrupt
        return replace(self, target)

    replace = Path.replace
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(model, out)
    assert len(list(out.iterdir())) == 2, "what had been moved is gone again"
    assert load(export(model, out)).config.intermediate_size == 64


def test_an_empty_directory_stays_the_one_that_it_is(model: Path, tmp_path: Path) -> None:
    """It may be a volume that was mounted there: neither is it replaced nor its parent written to."""
    (tmp_path / "empty").mkdir()
    place = (tmp_path / "empty").stat().st_ino
    with file_size_limit(100_000), pytest.raises(ExportError, match="make room"):
        export(model, tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []
    out = export(model, tmp_path / "empty")
    assert out.stat().st_ino == place
    assert load(out).config.intermediate_size == 64
    whole = export(model, tmp_path / "whole")
    assert {file.name for file in out.iterdir()} == {file.name for file in whole.iterdir()}


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """What a full disk is to whoever writes: it fails in the middle of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_is_told_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    with file_size_limit(100_000), pytest.raises(ExportError, match=r"bytes of weights\).*; make room"):
        export(model, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_an_interrupted_export_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        assert not (tmp_path / "out").exists(), "nothing is under the name before all is there"
        raise KeyboardInterrupt

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(export_module.shutil, "copyfile", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(model, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_a_damaged_model_is_told_as_that(model: Path, tmp_path: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no tensor 'model.layers.1.mlp.up_proj.weight'"):
        export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_the_model_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="rank a profile of this model"):
        export(model, tmp_path / "out", order=tiny_ranking(layers=2))
    with pytest.raises(ProfileError, match="3 from 1 to 192 fit"):
        export(model, tmp_path / "out", (64, 64, 193))
