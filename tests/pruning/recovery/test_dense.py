"""What the dense model holds likely is its own, and is computed once."""

from pathlib import Path

import pytest
import torch

from pruning.calibration.batches import TokenSequence
from pruning.checkpoints.checkpoint import Checkpoint
from pruning.errors import DeltaError
from pruning.recovery import dense
from pruning.recovery.dense import DenseSource, TaughtSequence, dense_sequences
from tests.pruning.recovery.support import ALONE, TOP, network, open_tiny, random_sequences

SEQUENCES = tuple(random_sequences(12))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_tiny(tmp_path_factory.mktemp("model"))


def source(checkpoint: Checkpoint, sequences=SEQUENCES, top: int = TOP) -> DenseSource:
    return DenseSource(checkpoint, torch.float32, sequences, top)


def ask(checkpoint: Checkpoint, asked: DenseSource, directory: Path) -> list[TaughtSequence]:
    return dense_sequences(network(checkpoint), asked, directory, ALONE, progress=False)


def test_the_likeliest_tokens_are_those_before_each_of_the_answers(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    model = network(checkpoint)
    found = ask(checkpoint, source(checkpoint), tmp_path)
    assert tuple(taught.sequence for taught in found) == SEQUENCES
    for taught in found:
        sequence = taught.sequence
        with torch.no_grad():
            logits = model(torch.tensor([sequence.fed])).logits[0, len(sequence.prompt) - 1 :]
        torch.testing.assert_close(taught.dense.ids.long(), logits.topk(TOP).indices)
        torch.testing.assert_close(
            taught.dense.log_probs[:, :-1], logits.log_softmax(-1).topk(TOP).values, rtol=1e-4, atol=1e-4
        )


def test_nothing_is_computed_twice(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after an interruption, nor where there are more sequences or another recovery."""
    monkeypatch.setattr(dense, "PART_SEQUENCES", 4)
    whole = ask(checkpoint, source(checkpoint), tmp_path / "whole")
    read_along, read = dense._read_along, []

    def interrupted(model, sequences, top):
        if len(read) == 2:
            raise KeyboardInterrupt
        read.append(len(sequences))
        return read_along(model, sequences, top)

    monkeypatch.setattr(dense, "_read_along", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask(checkpoint, source(checkpoint), tmp_path)
    kept = list(read)
    read.clear()

    def counted(model, sequences, top):
        read.append(len(sequences))
        return read_along(model, sequences, top)

    monkeypatch.setattr(dense, "_read_along", counted)
    again = ask(checkpoint, source(checkpoint), tmp_path)
    assert sum(kept) + sum(read) == len(SEQUENCES), "what was read before the interruption is kept"
    assert [taught.sequence for taught in again] == [taught.sequence for taught in whole]
    for one, other in zip(again, whole, strict=True):
        assert torch.equal(one.dense.log_probs, other.dense.log_probs)
    read.clear()
    assert len(ask(checkpoint, source(checkpoint), tmp_path)) == len(whole)
    assert read == []
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    more = source(checkpoint, (*SEQUENCES, TokenSequence((1,), (2,))))
    assert len(ask(checkpoint, more, tmp_path)) == len(whole) + 1
    assert read == [1]
    assert source(checkpoint).digest != more.digest
    assert source(checkpoint).digest != source(checkpoint, top=TOP + 1).digest


def test_a_damaged_part_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    ask(checkpoint, source(checkpoint), tmp_path)
    (part,) = tmp_path.glob("*.safetensors")
    part.write_bytes(part.read_bytes()[:-5])
    with pytest.raises(DeltaError, match=r"is damaged .*; remove it"):
        ask(checkpoint, source(checkpoint), tmp_path)


def test_what_cannot_be_kept_is_told(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DeltaError, match=r"cannot keep what the dense model holds likely in .*name another --cache"
    ):
        ask(checkpoint, source(checkpoint), tmp_path / "file")
