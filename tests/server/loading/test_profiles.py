"""A profile is measured once, kept, and refused where it is of something else."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.task import TaskError
from pruning.calibration.profile import load
from pruning.errors import StaleProfileError
from server.loading import profiles
from server.loading.profiles import measure_profile, measuring_on, open_model, profile_for_serving
from server.settings import ProfileSettings, ServeSettings
from tests.processes import printed_by
from tests.tiny import tiny_checkpoint

NUM_PROMPTS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("profiles") / "tiny", max_position_embeddings=1024)


@pytest.fixture(scope="module")
def prompt_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("prompts")
    for name, field in (("prompts", "text"), ("distractors", "prompt")):
        lines = [json.dumps({field: f"{name} number {i}"}) for i in range(16)]
        (directory / name).write_text("\n".join(lines) + "\n")
    return {name: directory / name for name in ("prompts", "distractors")}


@pytest.fixture
def measurement(model: Path, prompt_files: dict[str, Path], tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(model),
        "task": "notes",
        "cache_dir": tmp_path,
        "num_prompts": NUM_PROMPTS,
        "prompt_field": "text",
        **prompt_files,
    }


def test_serve_finds_what_profile_measured(measurement: dict[str, Any]) -> None:
    path, measured = measure_profile(ProfileSettings(**measurement))
    assert measured.target_per_prompt.sequences == NUM_PROMPTS
    serving = ServeSettings(model=measurement["model"], task="notes", cache_dir=measurement["cache_dir"])
    assert profile_for_serving(serving, open_model(serving)).digest == measured.digest
    elsewhere = ServeSettings(model=measurement["model"], profile=path, cache_dir=path / "nowhere")
    assert profile_for_serving(elsewhere, open_model(elsewhere)).digest == measured.digest


def test_the_network_that_measured_is_gone_afterwards(measurement: dict[str, Any]) -> None:
    """Whether or not the collector has come by. In a process of its own, whose first network it is."""
    settings = {name: str(value) for name, value in measurement.items()}
    script = (
        "import gc\nfrom pruning.garbage import no_garbage_collection\n"
        "from server.loading.profiles import measure_profile\nfrom server.settings import ProfileSettings\n"
        f"with no_garbage_collection():\n    measure_profile(ProfileSettings(**{settings!r}))\n"
        "    print([x for x in gc.get_objects() if type(x).__name__.endswith('ForCausalLM')])"
    )
    assert printed_by(script) == "[]\n"


def test_an_up_to_date_profile_is_kept_and_force_replaces_it(measurement: dict[str, Any]) -> None:
    path, _ = measure_profile(ProfileSettings(**measurement))
    written = path.stat().st_mtime_ns
    measure_profile(ProfileSettings(**measurement))
    assert path.stat().st_mtime_ns == written
    with pytest.raises(StaleProfileError, match="data"):
        measure_profile(ProfileSettings(**measurement, seed=1))
    measure_profile(ProfileSettings(**measurement, seed=1, force=True))
    assert load(path).provenance.seed == 1


def test_a_model_that_has_changed_refuses_its_old_profile(
    measurement: dict[str, Any], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(measurement["model"], model)
    measure_profile(ProfileSettings(**{**measurement, "model": str(model)}))
    tiny_checkpoint(model, seed=1, max_position_embeddings=1024)
    serving = ServeSettings(model=str(model), task="notes", cache_dir=tmp_path)
    with pytest.raises(StaleProfileError, match="model's digest"):
        profile_for_serving(serving, open_model(serving))


def test_a_profile_of_answers_that_ended_otherwise_is_refused(
    measurement: dict[str, Any], tmp_path: Path
) -> None:
    """The weights are the same, and so is their digest."""
    model = tmp_path / "model"
    shutil.copytree(measurement["model"], model)
    measurement = {**measurement, "model": str(model)}
    measure_profile(ProfileSettings(**measurement))
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    serving = ServeSettings(model=str(model), task="notes", cache_dir=tmp_path)
    with pytest.raises(StaleProfileError, match="answers end with the tokens"):
        profile_for_serving(serving, open_model(serving))
    with pytest.raises(StaleProfileError, match="answers end with the tokens"):
        measure_profile(ProfileSettings(**measurement))


def test_a_profile_of_another_precision_is_refused_where_one_is_named(measurement: dict[str, Any]) -> None:
    path, measured = measure_profile(ProfileSettings(**measurement))
    assert measured.provenance.dtype == "float32"
    assert measure_profile(ProfileSettings(**measurement, dtype="float32"))[0] == path
    with pytest.raises(StaleProfileError, match="bfloat16"):
        measure_profile(ProfileSettings(**measurement, dtype="bfloat16"))


def test_an_embedded_model_that_comes_with_a_new_version_is_measured_anew(
    measurement: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(measurement["model"], tmp_path / "embedded" / "mini")
    monkeypatch.setattr(profiles, "EMBEDDED_MODELS", tmp_path / "embedded")
    settings = ProfileSettings(**{**measurement, "model": "mini"})
    old, _ = measure_profile(settings)
    tiny_checkpoint(tmp_path / "embedded" / "mini", seed=1, max_position_embeddings=1024)
    new, _ = measure_profile(settings)
    assert old != new


def test_a_task_without_prompts_is_refused_with_the_way_out(
    measurement: dict[str, Any], tmp_path: Path
) -> None:
    serving = ServeSettings(model=measurement["model"], task="notes", cache_dir=tmp_path / "empty")
    with pytest.raises(TaskError, match=r"arithmetic.*secateur profile --task notes --prompts"):
        profile_for_serving(serving, open_model(serving))
    with pytest.raises(TaskError, match="--distractors"):
        measure_profile(ProfileSettings(**{**measurement, "distractors": None}))


@pytest.mark.parametrize(
    ("most_small", "multiplies", "asked", "dtype"),
    [
        (10**9, True, "auto", torch.float32),
        (0, True, "auto", torch.bfloat16),
        (0, False, "auto", torch.float32),
        (0, True, "float32", torch.float32),
        (10**9, True, "bfloat16", torch.bfloat16),
    ],
)
def test_only_large_models_are_measured_in_bfloat16_and_only_where_that_is_faster(
    model: Path,
    most_small: int,
    multiplies: bool,
    asked: str,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(profiles, "FLOAT32_PARAMETERS", most_small)
    monkeypatch.setattr(profiles, "cpu_multiplies_bfloat16", lambda: multiplies)
    settings = ServeSettings(model=str(model), device="cpu", dtype=asked)  # type: ignore[arg-type]
    assert measuring_on(settings, open_model(settings)) == (torch.device("cpu"), dtype)
