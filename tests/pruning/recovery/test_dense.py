"""What the dense model says is its own, is kept, and leaves out answers that did not end."""

from pathlib import Path

import pytest
import torch

from pruning import answers
from pruning.checkpoint import Checkpoint
from pruning.errors import DeltaError
from pruning.recovery import dense
from pruning.recovery.dense import DenseSource, TaughtSequence, dense_sequences
from tests.pruning.recovery.support import TOP, network, open_tiny

PROMPTS = tuple(tuple(range(97, 100 + i)) for i in range(12))
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Whose answers end by chance, some of them: any of a fifth of its tokens ends one."""
    return open_tiny(tmp_path_factory.mktemp("model"), eos_token_id=list(range(0, 320, 12)))


def source(checkpoint: Checkpoint, prompts=PROMPTS, **changes: int) -> DenseSource:
    options = {"max_new_tokens": NEW_TOKENS, "top": TOP, **changes}
    return DenseSource(checkpoint, torch.float32, prompts, **options)


def ask(checkpoint: Checkpoint, asked: DenseSource, directory: Path) -> list[TaughtSequence]:
    return dense_sequences(network(checkpoint), asked, directory, progress=False)


def test_answers_are_greedy_ended_and_with_their_likeliest_tokens(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    model = network(checkpoint)
    expected = {}
    for prompt in PROMPTS:
        tokens = list(prompt)
        while len(tokens) < len(prompt) + NEW_TOKENS:
            with torch.no_grad():
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
            if tokens[-1] in checkpoint.eos_token_ids:
                expected[prompt] = tuple(tokens[len(prompt) :])
                break
    assert 0 < len(expected) < len(PROMPTS), "some end and some do not"
    found = ask(checkpoint, source(checkpoint), tmp_path)
    assert {taught.sequence.prompt: taught.sequence.answer for taught in found} == expected
    for taught in found:
        sequence = taught.sequence
        with torch.no_grad():
            logits = model(torch.tensor([sequence.fed])).logits[0, len(sequence.prompt) - 1 :]
        torch.testing.assert_close(taught.dense.ids.long(), logits.topk(TOP).indices)
        torch.testing.assert_close(
            taught.dense.log_probs[:, :-1], logits.log_softmax(-1).topk(TOP).values, rtol=1e-4, atol=1e-4
        )
        assert taught.dense.ids[:, 0].tolist() == list(sequence.answer)


def test_nothing_is_asked_twice(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after an interruption, nor where there are more prompts or another recovery."""
    monkeypatch.setattr(dense, "PART_PROMPTS", 4)
    whole = ask(checkpoint, source(checkpoint), tmp_path / "whole")
    asked: list[int] = []

    def interrupted(model, prompts, *rest, **options):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(prompts))
        return answers.own_answers(model, prompts, *rest, **options)

    monkeypatch.setattr(dense, "own_answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask(checkpoint, source(checkpoint), tmp_path)
    monkeypatch.setattr(dense, "own_answers", answers.own_answers)
    again = ask(checkpoint, source(checkpoint), tmp_path)
    assert [taught.sequence for taught in again] == [taught.sequence for taught in whole]
    for one, other in zip(again, whole, strict=True):
        assert torch.equal(one.dense.log_probs, other.dense.log_probs)
    monkeypatch.setattr(dense, "own_answers", None)
    assert len(ask(checkpoint, source(checkpoint), tmp_path)) == len(whole)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    more = source(checkpoint, (*PROMPTS, (1, 2)))
    with pytest.raises(TypeError):  # only the new part is asked
        ask(checkpoint, more, tmp_path)
    assert source(checkpoint).digest != more.digest
    assert source(checkpoint).digest != source(checkpoint, top=TOP + 1).digest


def test_a_damaged_part_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    ask(checkpoint, source(checkpoint), tmp_path)
    (part,) = tmp_path.glob("*.safetensors")
    part.write_bytes(part.read_bytes()[:-5])
    with pytest.raises(DeltaError, match=r"is damaged .*; remove it"):
        ask(checkpoint, source(checkpoint), tmp_path)


def test_answers_that_cannot_be_kept_are_told(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeltaError, match=r"cannot keep the dense model's answers in .*name another --cache"):
        ask(checkpoint, source(checkpoint), tmp_path / "file")
