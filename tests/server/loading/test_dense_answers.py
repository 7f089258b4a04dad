"""The engine's answers are transformers' own, and nobody is asked twice."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pruning.calibration.answers import Answers
from pruning.calibration.calibration import load_network
from pruning.chat_prompts import prompt_token_ids
from pruning.checkpoints.checkpoint import Checkpoint, open_checkpoint
from pruning.errors import MemoryBoundError, ProfileError
from server.loading import dense_answers as module
from server.loading.dense_answers import dense_answers
from tests.tiny import tiny_checkpoint
from training.answers import own_answers

PROMPTS = ("one and one", "2 + 3 * 4 =", "a much longer question than the other two", "one and one", "b")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", "qwen2")
    return open_checkpoint(str(path), path)


def ask(checkpoint: Checkpoint, cache_dir: Path, prompts: tuple[str, ...] = PROMPTS, **more: Any) -> Answers:
    return dense_answers(
        checkpoint, prompts, 12, device=CPU, dtype=torch.float32, cache_dir=cache_dir, **more
    )


def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_engine", None)


@pytest.mark.parametrize("rows", [1, 2, 64])
def test_they_are_what_transformers_generates(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", rows)
    prompts = [prompt_token_ids(checkpoint.tokenizer(), prompt) for prompt in PROMPTS]
    model = load_network(checkpoint, CPU, torch.float32)
    assert ask(checkpoint, tmp_path) == own_answers(model, prompts, 12, progress=False)


def test_an_answer_ends_with_its_end_of_sequence_token(checkpoint: Checkpoint, tmp_path: Path) -> None:
    plain = ask(checkpoint, tmp_path)
    path = tiny_checkpoint(tmp_path / "ends", "qwen2", eos_token_id=plain.token_ids[0][3])
    ended = ask(open_checkpoint(str(path), path), tmp_path)
    assert ended.token_ids[0] == plain.token_ids[0][: plain.token_ids[0].index(plain.token_ids[0][3]) + 1]
    assert plain.unfinished == len(PROMPTS)
    assert ended.unfinished == sum(answer[-1] != plain.token_ids[0][3] for answer in ended.token_ids)
    assert ended.unfinished < len(PROMPTS)


def test_a_corrected_end_of_sequence_token_is_asked_anew(tmp_path: Path) -> None:
    """Nothing else about the model has changed, not even its fingerprints."""
    path = tiny_checkpoint(tmp_path / "tiny", "qwen2")
    wrong = open_checkpoint(str(path), path)
    plain = ask(wrong, tmp_path)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": plain.token_ids[0][3]}))
    corrected = open_checkpoint(str(path), path)
    assert corrected.fingerprint == wrong.fingerprint
    assert ask(corrected, tmp_path).unfinished < plain.unfinished == len(PROMPTS)


def test_what_was_answered_is_not_asked_again(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ask(checkpoint, tmp_path)
    asked: list[list[int]] = []
    whole = module._ask
    monkeypatch.setattr(
        module, "_ask", lambda c, e, prompts, n: asked.extend(prompts) or whole(c, e, prompts, n)
    )
    more = ask(checkpoint, tmp_path, (*PROMPTS, "new"))
    assert more.token_ids[:-1] == found.token_ids
    assert asked == [prompt_token_ids(checkpoint.tokenizer(), "new")]
    nobody_is_asked(monkeypatch)
    assert ask(checkpoint, tmp_path) == found


def test_an_interrupted_call_keeps_what_it_got(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = module._ask

    def interrupted(*arguments: Any) -> Any:
        yield next(whole(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask(checkpoint, tmp_path)
    [file] = (tmp_path / "answers").iterdir()
    [kept] = [json.loads(line) for line in file.read_text().splitlines() if line]
    monkeypatch.setattr(module, "_ask", whole)
    assert kept["answer"] in ask(checkpoint, tmp_path).token_ids


def test_a_damaged_line_is_an_answer_that_is_not_known(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ask(checkpoint, tmp_path)
    [file] = (tmp_path / "answers").iterdir()
    content = file.read_bytes().rstrip()
    file.write_bytes(b"7\nnot JSON\n{}\n\xff\n" + content[:-9])
    assert ask(checkpoint, tmp_path) == found
    nobody_is_asked(monkeypatch)
    assert ask(checkpoint, tmp_path) == found


def test_another_model_dtype_or_length_has_other_answers(checkpoint: Checkpoint, tmp_path: Path) -> None:
    ask(checkpoint, tmp_path)
    dense_answers(checkpoint, PROMPTS, 3, device=CPU, dtype=torch.float32, cache_dir=tmp_path)
    dense_answers(checkpoint, PROMPTS, 12, device=CPU, dtype=torch.bfloat16, cache_dir=tmp_path)
    path = tiny_checkpoint(tmp_path / "other", "qwen2", seed=1)
    ask(open_checkpoint(str(path), path), tmp_path)
    assert len(list((tmp_path / "answers").iterdir())) == 4


def test_limits_are_told(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(MemoryBoundError, match=r"answering the prompts takes at least .*keys and values"):
        ask(checkpoint, tmp_path, max_memory_bytes=300_000)
    with pytest.raises(ProfileError, match="takes 512 together"):
        ask(checkpoint, tmp_path, ("long " * 200,))
    (tmp_path / "answers").write_text("a file in the way")
    with pytest.raises(
        ProfileError, match=r"cannot keep the dense model's answers in .* name another --cache-dir"
    ):
        ask(checkpoint, tmp_path)
