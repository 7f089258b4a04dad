import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pruning.checkpoints import checkpoint as checkpoint_module
from pruning.checkpoints import fingerprints
from pruning.checkpoints.checkpoint import default_cache_dir, open_checkpoint
from pruning.errors import ModelError, UnsupportedModelError
from tests.tiny import tiny_checkpoint

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny-model")


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(original, tmp_path / "tiny-model"))


def reshard(path: Path) -> list[Path]:
    """Spreads the weights over several files with an index, as large checkpoints come."""
    model = AutoModelForCausalLM.from_pretrained(path)
    (path / WEIGHTS).unlink()
    model.save_pretrained(path, max_shard_size="100KB")
    shards = sorted(path.glob("model-*.safetensors"))
    assert len(shards) > 2
    return shards


def edit_config(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def edit_weights(path: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path / WEIGHTS)
    edit(tensors)
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})


def test_a_directory_is_opened(model: Path) -> None:
    checkpoint = open_checkpoint(str(model), default_cache_dir())

    assert checkpoint.path == model
    assert checkpoint.name == "tiny-model"
    assert checkpoint.architecture.intermediate_size == 192
    assert checkpoint.tokenizer().decode(checkpoint.tokenizer()("abc").input_ids) == "abc"


@pytest.mark.parametrize("sharded", [False, True])
def test_tensors_are_read_whole_and_by_rows(model: Path, sharded: bool) -> None:
    expected = load_file(model / WEIGHTS)
    if sharded:
        reshard(model)

    with open_checkpoint(str(model), model).open_tensors() as tensors:
        assert tensors.names == set(expected)
        for name, tensor in expected.items():
            assert torch.equal(tensors.get(name), tensor)
            assert tensors.shape(name) == tuple(tensor.shape)
            assert tensors.dtype(name) == tensor.dtype
            assert torch.equal(tensors.rows(name, 1, 7), tensor[1:7])


def test_rows_that_are_not_there_are_refused(model: Path) -> None:
    with open_checkpoint(str(model), model).open_tensors() as tensors:
        for start, stop in ((0, 65), (-1, 3), (5, 4)):
            with pytest.raises(ModelError, match=rf"shape \[64\]; rows {start} to {stop}"):
                tensors.rows("model.norm.weight", start, stop)


def test_a_missing_tensor_is_named(model: Path) -> None:
    with (
        open_checkpoint(str(model), model).open_tensors() as tensors,
        pytest.raises(ModelError, match=r"no tensor 'model\.nothing\.weight'; the checkpoint is incomplete"),
    ):
        tensors.get("model.nothing.weight")


def test_a_missing_shard_is_named(model: Path) -> None:
    missing = reshard(model)[1]
    missing.unlink()

    with pytest.raises(ModelError, match=f"{missing.name} is missing, though {INDEX} lists it"):
        open_checkpoint(str(model), model)


def test_a_truncated_file_is_named(model: Path) -> None:
    content = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(content[: len(content) // 2])

    with (
        pytest.raises(ModelError, match=rf"{WEIGHTS} is truncated or damaged .*get the file again"),
        open_checkpoint(str(model), model).open_tensors(),
    ):
        pass


def test_a_damaged_index_is_named(model: Path) -> None:
    reshard(model)
    (model / INDEX).write_text('{"weight_map": ')

    with pytest.raises(ModelError, match=f"{INDEX} is damaged"):
        open_checkpoint(str(model), model)


def test_pickled_weights_are_never_read(model: Path) -> None:
    (model / WEIGHTS).unlink()
    (model / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit'\ntR.")

    with pytest.raises(ModelError, match=r"weights in pytorch_model\.bin, which would have to be unpickled"):
        open_checkpoint(str(model), model)


def test_a_directory_without_weights_is_refused(model: Path) -> None:
    (model / WEIGHTS).unlink()

    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        open_checkpoint(str(model), model)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": "qwen2", "hidden_size": "wide"}'])
def test_a_damaged_configuration_is_refused(model: Path, content: str) -> None:
    (model / "config.json").write_text(content)

    with pytest.raises(ModelError, match=r"config\.json|in the configuration"):
        open_checkpoint(str(model), model)


def test_a_model_that_brings_its_own_code_is_refused(model: Path) -> None:
    edit_config(model, model_type="own", auto_map={"AutoConfig": "own.OwnConfig"})
    (model / "own.py").write_text("raise SystemExit('this code must not run')")

    with pytest.raises(UnsupportedModelError, match="'own' is not supported; supported are llama, qwen2"):
        open_checkpoint(str(model), model)


@pytest.mark.parametrize("name", ["nowhere", "./no/where", "/no/where", "no/where.gguf", "a/b/c"])
def test_a_path_that_does_not_exist_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"no file or directory {name}"):
        open_checkpoint(name, tmp_path)


def test_a_file_that_is_not_gguf_is_refused(model: Path) -> None:
    with pytest.raises(ModelError, match=r"not \.gguf; give the directory"):
        open_checkpoint(str(model / WEIGHTS), model)


def test_a_hub_id_is_asked_for_data_files_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str]]] = []

    def snapshot_download(repo_id: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append((repo_id, allow_patterns))
        return str(model)

    monkeypatch.setattr(checkpoint_module, "snapshot_download", snapshot_download)
    checkpoint = open_checkpoint("some-lab/some-model", model)

    assert checkpoint.name == "some-model"
    assert [repo_id for repo_id, _ in asked] == ["some-lab/some-model"]
    assert not any(pattern.endswith(("bin", "pt", "py", "*")) for pattern in asked[0][1])


def test_a_hub_that_cannot_be_reached_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(ModelError, match=r"some-lab/no-such-model is no local path .*HF_HUB_OFFLINE"):
        open_checkpoint("some-lab/no-such-model", tmp_path)


def test_the_fingerprint_is_of_the_network_wherever_it_lies(model: Path, original: Path) -> None:
    fingerprint = open_checkpoint(str(original), model).fingerprint
    reshard(model)
    edit_config(model, torch_dtype="float32", use_cache=False)

    assert open_checkpoint(str(model), model).fingerprint == fingerprint


def set_first_row(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] += 1


def set_last_row(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.embed_tokens.weight"][-1, -1] += 1


def set_norm(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.2.input_layernorm.weight"][31] += 1


def reinterpret(tensors: dict[str, torch.Tensor]) -> None:  # the same bytes, other numbers
    tensors["model.norm.weight"] = tensors["model.norm.weight"].view(torch.int32)


@pytest.mark.parametrize("edit", [set_first_row, set_last_row, set_norm, reinterpret])
def test_another_revision_has_another_fingerprint(
    model: Path, original: Path, edit: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    edit_weights(model, edit)

    assert open_checkpoint(str(model), model).fingerprint != open_checkpoint(str(original), model).fingerprint


def test_the_fingerprint_covers_what_the_configuration_computes(model: Path, original: Path) -> None:
    edit_config(model, rms_norm_eps=0.5)

    assert open_checkpoint(str(model), model).fingerprint != open_checkpoint(str(original), model).fingerprint


def test_the_tokenizer_fingerprint_covers_the_chat_template(model: Path, original: Path) -> None:
    before = open_checkpoint(str(original), model)
    assert open_checkpoint(str(model), model).tokenizer_fingerprint == before.tokenizer_fingerprint
    (model / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    after = open_checkpoint(str(model), model)

    assert after.tokenizer_fingerprint != before.tokenizer_fingerprint
    assert after.fingerprint == before.fingerprint


def test_what_a_template_is_told_where_something_is_measured_is_part_of_it(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured while a model still thought first is of something else."""

    def found(template: str) -> str:
        (model / "chat_template.jinja").write_text(template)
        return open_checkpoint(str(model), model).tokenizer_fingerprint

    thinks, plain = "{{ messages }}{% if enable_thinking %}<think>{% endif %}", "{{ messages }}"
    before = {template: found(template) for template in (thinks, plain)}
    monkeypatch.setattr(fingerprints, "MEASUREMENT_VARIABLES", {"enable_thinking": True})
    assert found(plain) == before[plain]
    assert found(thinks) != before[thinks]


def test_a_model_without_a_tokenizer_says_so(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    checkpoint = open_checkpoint(str(model), model)

    with pytest.raises(ModelError, match="has no tokenizer"):
        checkpoint.tokenizer()
    with pytest.raises(ModelError, match="has no tokenizer"):
        _ = checkpoint.tokenizer_fingerprint


def test_a_damaged_tokenizer_is_a_clear_error(model: Path) -> None:
    (model / "tokenizer.json").write_text("{")

    with pytest.raises(ModelError, match="cannot load the tokenizer"):
        open_checkpoint(str(model), model).tokenizer()


def test_the_cache_directory_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE_DIR", "/some/where")
    assert default_cache_dir() == Path("/some/where")
    monkeypatch.delenv("SECATEUR_CACHE_DIR")
    assert default_cache_dir() == Path("~/.cache/secateur").expanduser()


def test_generation_settings_say_what_ends_an_answer_before_the_model_does(model: Path) -> None:
    settings, config = model / "generation_config.json", json.loads((model / "config.json").read_text())
    settings.write_text(json.dumps({"eos_token_id": [3, 4]}))
    assert open_checkpoint(str(model), model).eos_token_ids == {3, 4}
    settings.unlink()
    assert open_checkpoint(str(model), model).eos_token_ids == {config["eos_token_id"]}
