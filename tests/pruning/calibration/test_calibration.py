import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruning.calibration import calibration
from pruning.calibration.answers import Answers
from pruning.calibration.calibration import CalibrationData, build_profile
from pruning.calibration.profile import SelectivityProfile
from pruning.chat_prompts import prompt_token_ids
from pruning.checkpoints.checkpoint import Checkpoint, open_checkpoint
from pruning.errors import ModelError, ProfileError, StaleProfileError
from tests.tiny import tiny_checkpoint

DATA = CalibrationData(
    target=("one and one", "2 + 3 * 4 =", "a much longer question than the other two"),
    distractor=("once upon a time", "a dog"),
    seed=7,
    max_new_tokens=12,
)
ANSWERS = Answers([[5, 6, 7], [8, 4], [9, 10, 11, 12]], unfinished=3)  # as far as measuring is concerned


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", "qwen2")
    return open_checkpoint(str(path), path)


def build(
    checkpoint: Checkpoint,
    data: CalibrationData = DATA,
    *,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> SelectivityProfile:
    return build_profile(checkpoint, "sums", data, ANSWERS, device="cpu", dtype=dtype, progress=progress)


def test_a_prompt_goes_through_the_chat_template(checkpoint: Checkpoint) -> None:
    tokenizer = checkpoint.tokenizer()
    assert tokenizer.decode(prompt_token_ids(tokenizer, "hi")) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    tokenizer.chat_template = None
    assert tokenizer.decode(prompt_token_ids(tokenizer, "hi")) == "hi"


def test_the_profile_counts_prompt_and_answer_tokens_apart(checkpoint: Checkpoint) -> None:
    profile = build(checkpoint)
    tokenizer = checkpoint.tokenizer()
    prompts = [prompt_token_ids(tokenizer, prompt) for prompt in DATA.target]

    assert profile.target_prompt.tokens == sum(map(len, prompts))
    assert profile.target_answer.tokens == sum(len(answer) - 1 for answer in ANSWERS.token_ids)
    assert profile.distractor_prompt.tokens == sum(
        len(prompt_token_ids(tokenizer, prompt)) for prompt in DATA.distractor
    )
    assert profile.target_per_prompt.sequences == 3
    assert profile.target_per_answer.sequences == 3
    assert profile.distractor_per_prompt.sequences == 2
    assert bool((profile.taylor_sq_sum > 0).any(dim=1).all())


def test_the_profile_says_what_it_was_measured_on(checkpoint: Checkpoint) -> None:
    provenance = build(checkpoint).provenance

    assert (provenance.model, provenance.tokenizer, provenance.data) == (
        checkpoint.fingerprint,
        checkpoint.tokenizer_fingerprint,
        DATA.fingerprint,
    )
    assert (provenance.task, provenance.seed, provenance.dtype) == ("sums", 7, "float32")
    assert provenance.versions["torch"] == torch.__version__


def test_a_profile_does_not_depend_on_how_sequences_are_batched(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = build(checkpoint)
    monkeypatch.setattr(calibration, "MEASURED_ROWS", 1)
    alone = build(checkpoint)

    torch.testing.assert_close(alone.taylor_sq_sum, together.taylor_sq_sum, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(
        alone.target_answer.sq_sum, together.target_answer.sq_sum, rtol=1e-4, atol=1e-7
    )
    torch.testing.assert_close(
        alone.distractor_per_prompt.sq_sum, together.distractor_per_prompt.sq_sum, rtol=1e-4, atol=1e-7
    )


def test_the_same_profile_twice_is_the_same(checkpoint: Checkpoint) -> None:
    assert build(checkpoint).digest == build(checkpoint).digest


def test_answers_that_do_not_end_are_counted_and_reported(
    checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="pruning"):
        profile = build(checkpoint)

    assert profile.provenance.unfinished_answers == 3
    assert "3 of 3 answers did not end within 12 tokens" in caplog.text


def test_a_profile_of_another_revision_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    profile = build(checkpoint)
    path = tiny_checkpoint(tmp_path / "tiny", "qwen2", seed=1)
    other = open_checkpoint(str(path), path)

    with pytest.raises(StaleProfileError) as caught:
        profile.check(model=other.fingerprint, tokenizer=other.tokenizer_fingerprint, data=DATA.fingerprint)
    assert "the model's digest is" in str(caught.value)
    assert "tokenizer" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [{"target": ("x",)}, {"distractor": ("x",)}, {"seed": 8}, {"max_new_tokens": 13}],
)
def test_the_data_fingerprint_covers_everything(changes: dict[str, Any]) -> None:
    assert dataclasses.replace(DATA, **changes).fingerprint != DATA.fingerprint


@pytest.mark.parametrize("side", ["target", "distractor"])
def test_no_prompts_are_no_profile(checkpoint: Checkpoint, side: str) -> None:
    with pytest.raises(ProfileError, match=f"there are no {side} prompts"):
        build(checkpoint, dataclasses.replace(DATA, **{side: ()}))


def test_prompts_that_do_not_fit_the_context_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ProfileError, match=r"its answer may have 500; tiny takes 512 together"):
        build(checkpoint, dataclasses.replace(DATA, max_new_tokens=500))


def test_a_checkpoint_that_lacks_tensors_is_not_build(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "tiny")
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ModelError, match=r"no tensors model\.layers\.1\.mlp\.up_proj\.weight"):
        build(open_checkpoint(str(path), path))


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "tiny")
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[:-1])

    with pytest.raises(ModelError, match=r"model\.safetensors is truncated or damaged"):
        build(open_checkpoint(str(path), path))


def test_activations_that_overflow_are_refused(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "tiny")
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] *= 1e38
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ProfileError, match="not finite in float32"):
        build(open_checkpoint(str(path), path))


def test_progress_goes_to_stderr(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    build(checkpoint, progress=True)
    captured = capsys.readouterr()

    assert captured.out == ""
    assert "activations: 100%" in captured.err


def test_bfloat16_measures_about_the_same(checkpoint: Checkpoint) -> None:
    exact = build(checkpoint)
    rounded = build(checkpoint, dtype=torch.bfloat16)

    assert rounded.provenance.dtype == "bfloat16"
    ratio = rounded.distractor_prompt.sq_sum.sum() / exact.distractor_prompt.sq_sum.sum()
    assert float(ratio) == pytest.approx(1, abs=0.05)
