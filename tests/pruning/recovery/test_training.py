"""A training learns, stops when it should, and goes on where it was to the same curve."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from pruning.errors import DeltaError
from pruning.recovery.network import AdaptedNetwork
from pruning.recovery.progress import HeldOutLoss, Progress, ProgressFile
from pruning.recovery.training import Trainer, TrainingSettings, learning_rate_at
from tests.pruning.recovery.support import ALONE, NARROW, WIDE, adapted, open_tiny, random_sequences, taught

SETTINGS = TrainingSettings(
    learning_rate=1e-2,
    schedule="cosine",
    warmup=0.1,
    epochs=2,
    batch_tokens=128,
    row_tokens=64,
    ce_weight=0.1,
    evaluations=4,
    patience=10,
    seed=0,
    save_seconds=0,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory):
    return open_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(checkpoint):
    found = taught(checkpoint, random_sequences(32))
    return found[4:], found[:4]


def trainer(net: AdaptedNetwork, data, path: Path, key: str = "k", **changes: object) -> Trainer:
    settings = dataclasses.replace(SETTINGS, **changes)
    return Trainer(net, *data, settings, ProgressFile(path / "training.safetensors", key), ALONE)


def curve(progress: Progress) -> list[tuple[float, ...]]:
    """All but the clock."""
    return [(s.step, s.learning_rate, s.cross_entropy, s.divergence) for s in progress.steps] + [
        (h.step, *h.cross_entropy, *h.divergence) for h in progress.held_out
    ]


def test_both_widths_come_nearer_to_the_dense_model(checkpoint, tmp_path: Path) -> None:
    """On text that they did not read, which takes more of it than `data` has: with that little, none does."""
    much = taught(checkpoint, random_sequences(160))
    network = adapted(checkpoint, (WIDE, NARROW))
    # Without the cross-entropy, for the answers are not the model's own.
    options = {"epochs": 4, "learning_rate": 3e-3, "ce_weight": 0.0}
    training = trainer(network, (much[32:], much[:32]), tmp_path, **options)
    before = training.held_out_losses()
    done = training.run(progress=False)
    after = training.held_out_losses()
    assert len(done.steps) == training.num_steps
    assert done.best > 0
    for variant in (0, 1):
        assert after.divergence[variant] < 0.9 * before.divergence[variant]
    assert before.divergence == pytest.approx(done.held_out[0].divergence)
    assert after.divergence == pytest.approx(done.held_out[done.best].divergence)
    network.forget()  # no correction at all, which a training starts from
    assert training.held_out_losses().divergence == pytest.approx(before.divergence)


@pytest.mark.parametrize("evaluations", [1, 3, 6, 100])
def test_held_out_answers_are_measured_at_most_so_often(
    checkpoint, data, tmp_path: Path, evaluations: int
) -> None:
    done = trainer(adapted(checkpoint), data, tmp_path, evaluations=evaluations, patience=100).run(
        progress=False
    )
    assert len(done.held_out) <= evaluations + 1  # and once before
    assert done.held_out[0].step == 0
    assert done.held_out[-1].step == len(done.steps)


@pytest.mark.parametrize("stopped_at", [1, 5])
def test_an_interrupted_training_goes_on_to_the_same_curve(
    checkpoint, data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int
) -> None:
    whole = trainer(adapted(checkpoint, (WIDE, NARROW)), data, tmp_path / "whole").run(progress=False)
    step = Trainer._step
    taken: list[int] = []

    def interrupted(self: Trainer, number: int, started: float) -> None:
        if number == stopped_at and taken == list(range(stopped_at)):
            raise KeyboardInterrupt
        taken.append(number)
        step(self, number, started)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer(adapted(checkpoint, (WIDE, NARROW)), data, tmp_path).run(progress=False)
    taken.append(-1)
    resumed = trainer(adapted(checkpoint, (WIDE, NARROW)), data, tmp_path)
    again = resumed.run(progress=False)
    assert taken == [*range(stopped_at), -1, *range(stopped_at, len(whole.steps))], "no step is taken twice"
    assert [pytest.approx(point, rel=1e-5) for point in curve(whole)] == curve(again)
    assert resumed.run(progress=False).steps == again.steps, "one that is done takes no more steps"


def test_it_ends_when_held_out_answers_gain_no_more(checkpoint, data, tmp_path: Path) -> None:
    """And gives back the best, not the last."""
    fresh = {name: tensor.detach().clone() for name, tensor in adapted(checkpoint).parameters().items()}
    for _ in range(2):  # the second time it is read from the file
        net = adapted(checkpoint)
        training = trainer(net, data, tmp_path, learning_rate=3.0, schedule="constant", patience=2)
        done = training.run(progress=False)
        assert done.best == 0
        assert len(done.held_out) == 3
        assert len(done.steps) < training.num_steps
        assert all(torch.equal(parameter, fresh[name]) for name, parameter in net.parameters().items())


def test_a_loss_that_is_not_finite_is_told(checkpoint, data, tmp_path: Path) -> None:
    net = adapted(checkpoint)
    with torch.no_grad():
        next(iter(net.parameters().values())).fill_(torch.nan)
    with pytest.raises(DeltaError, match=r"not finite at step 1 of \d+: lower --learning-rate \(0.01\)"):
        trainer(net, data, tmp_path).run(progress=False)


def test_progress_of_another_run_or_a_damaged_one_is_refused(checkpoint, data, tmp_path: Path) -> None:
    trainer(adapted(checkpoint), data, tmp_path, epochs=1).run(progress=False)
    with pytest.raises(DeltaError, match=r"unfinished training with other settings.*: remove it"):
        trainer(adapted(checkpoint), data, tmp_path, key="other")
    file = tmp_path / "training.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DeltaError, match="damaged"):
        trainer(adapted(checkpoint), data, tmp_path)


def test_progress_that_cannot_be_kept_is_told(
    checkpoint, data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was kept before is still there, to go on from."""
    training = trainer(adapted(checkpoint), data, tmp_path, epochs=1)
    files = [os.fsync, os.fsync]

    def fsync(descriptor: int) -> None:
        if not files:
            raise OSError(28, "No space left on device")
        files.pop()(descriptor)

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fsync)
        with pytest.raises(DeltaError, match=r"cannot keep .*No space left.* it goes on where it was last"):
            training.run(progress=False)
    assert [file.name for file in tmp_path.iterdir()] == ["training.safetensors"]
    whole = trainer(adapted(checkpoint), data, tmp_path / "whole", epochs=1).run(progress=False)
    again = trainer(adapted(checkpoint), data, tmp_path, epochs=1).run(progress=False)
    assert [pytest.approx(point, rel=1e-5) for point in curve(whole)] == curve(again)


def test_the_learning_rate_rises_and_falls() -> None:
    for schedule, last in (("cosine", 0.0), ("linear", 0.0), ("constant", 1e-2)):
        settings = dataclasses.replace(SETTINGS, schedule=schedule)
        rates = [learning_rate_at(step, 100, settings) for step in range(100)]
        assert max(rates) == pytest.approx(1e-2)
        assert rates.index(max(rates)) == 10
        assert rates[:11] == sorted(rates[:11])
        assert rates[10:] == sorted(rates[10:], reverse=True)
        assert rates[-1] == pytest.approx(last, abs=2e-4)
    assert learning_rate_at(0, 1, SETTINGS) > 0


def test_the_best_weighs_orders_of_magnitude() -> None:
    """Half the divergence of a nearly dense variant counts as much as half that of a distant one."""

    def held_out(*divergence: float) -> HeldOutLoss:
        return HeldOutLoss((0.0,) * len(divergence), divergence, step=0, seconds=0.0)

    progress = Progress(held_out=[held_out(0.001, 1.0), held_out(0.0005, 1.5), held_out(0.001, 0.9)])
    assert progress.best == 1
