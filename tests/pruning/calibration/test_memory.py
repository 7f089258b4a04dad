"""What is needed is named, what is measured within a bound is the same, and the bound decides how."""

import dataclasses
from pathlib import Path

import pytest
import torch

from pruning.calibration import calibration
from pruning.calibration.activations import decoder
from pruning.calibration.batches import TokenSequence, pad_batch
from pruning.calibration.calibration import Calibration, CalibrationData, load_network, start_calibration
from pruning.calibration.gradients import add_moments_and_gradients
from pruning.calibration.layerwise import enter_layers
from pruning.calibration.memory import layer_bytes, spare_bytes, weight_bytes
from pruning.checkpoints.checkpoint import Checkpoint, open_checkpoint
from pruning.compensation.streams import Streams, StreamStore
from pruning.errors import MemoryBoundError
from tests.pruning.answered import answers_to
from tests.tiny import tiny_checkpoint

DATA = CalibrationData(
    ("one and one", "2 + 3 * 4 =", "many words, for a change"), ("once",), seed=7, max_new_tokens=8
)
LAYERS, NEURONS, HIDDEN = 3, 192, 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")
    return open_checkpoint(str(path), path)


def started(checkpoint: Checkpoint, bound: int | None):
    return start_calibration(
        checkpoint,
        "sums",
        DATA,
        answers_to(DATA, checkpoint),
        device="cpu",
        dtype=torch.float32,
        max_memory_bytes=bound,
    )


def test_what_is_left_and_what_is_lacking() -> None:
    parts = {"the model": 3 * 2**30, "its logits": 2**29}
    assert spare_bytes("it", parts, 2**32, "wait") == 2**29
    assert spare_bytes("it", parts, 7 * 2**29, "wait") == 0
    expected = (
        r"it takes at least 3\.500 GiB: the model 3\.000, its logits 0\.500; the bound is 3\.000: .* or wait"
    )
    with pytest.raises(MemoryBoundError, match=expected):
        spare_bytes("it", parts, 3 * 2**30, "wait")
    with pytest.raises(MemoryBoundError, match=r"at least 0\.001 GiB"):  # rounded up: what is named suffices
        spare_bytes("it", {"a byte": 1}, 0, "wait")


def test_the_bound_decides_how_many_layers_are_held_and_the_profile_is_the_same(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def noted(*args, layers_at_once: int):
        seen.append(layers_at_once)
        add_moments_and_gradients(*args, layers_at_once=layers_at_once)

    monkeypatch.setattr(calibration, "add_moments_and_gradients", noted)
    unbounded = started(checkpoint, None)
    a_layer = layer_bytes(unbounded.model, pad_batch(unbounded.targets, torch.device("cpu")))
    least = least_bound(unbounded)
    assert least > weight_bytes(unbounded.model) + a_layer
    profiles = [unbounded.measure(progress=False)]
    for layers in range(LAYERS + 1):
        within = dataclasses.replace(unbounded, max_memory_bytes=least + layers * a_layer)
        profiles.append(within.measure(progress=False))
    assert seen == [LAYERS, 1, 2, LAYERS, LAYERS]
    assert len({profile.digest for profile in profiles}) == 1


def least_bound(unbounded: Calibration) -> int:
    """To the byte."""
    refused, works = 0, 2**40
    while works - refused > 1:
        bound = (refused + works) // 2
        try:
            assert dataclasses.replace(unbounded, max_memory_bytes=bound).layers_at_once >= 1
            works = bound
        except MemoryBoundError:
            refused = bound
    return works


def test_what_is_held_beside_and_long_foreign_prompts_count(checkpoint: Checkpoint) -> None:
    unbounded = started(checkpoint, None)
    least = least_bound(unbounded)
    assert least_bound(dataclasses.replace(unbounded, held_bytes=10_000)) == least + 10_000
    long = (TokenSequence(tuple(range(200))),)
    assert least_bound(dataclasses.replace(unbounded, distractors=long)) > 1.1 * least


def test_the_bound_is_kept(checkpoint: Checkpoint) -> None:
    with pytest.raises(MemoryBoundError, match=r"measuring the neurons takes at least 0\.\d+ GiB: the model"):
        started(checkpoint, 1_500_000).measure(progress=False)


def test_a_layer_is_counted_without_its_weights_and_with_its_neurons(checkpoint: Checkpoint) -> None:
    model = load_network(checkpoint, torch.device("cpu"), torch.float32)
    few, many = (
        layer_bytes(model, pad_batch([TokenSequence(tuple(range(tokens)))], torch.device("cpu")))
        for tokens in (100, 200)
    )
    assert many == pytest.approx(2 * few, rel=0.02)
    # Gate and up as they are, the activation, their product: at least so much of a token.
    assert few > 100 * (4 * NEURONS + 4 * HIDDEN) * 4
    assert few < 100 * (6 * NEURONS + 40 * HIDDEN) * 4


def test_layers_one_by_one_are_the_model(checkpoint: Checkpoint) -> None:
    model = load_network(checkpoint, torch.device("cpu"), torch.float32)
    sequences = [TokenSequence((5, 80, 81, 40), (7, 9)), TokenSequence((3, 4))]
    batch = pad_batch(sequences, torch.device("cpu"))
    with torch.no_grad():
        stream, inputs = enter_layers(model, batch)
        for layer, given in zip(decoder(model).layers, inputs.by_layer, strict=True):
            stream = layer(stream, **given)
        whole = decoder(model)(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    assert torch.equal(decoder(model).norm(stream), whole.last_hidden_state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streams_come_back_from_disk_as_they_were(dtype: torch.dtype, tmp_path: Path) -> None:
    def streams(seed: int, *, plain: bool) -> Streams:
        drawn = torch.randn(3, 2, 5, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)
        return Streams(drawn[0], drawn[1], drawn[2] if plain else None)

    one = streams(0, plain=True)
    store = StreamStore(tmp_path / "streams", one.nbytes, torch.device("cpu"))
    for round_ in range(2):
        for number in range(3):
            store.put(number, streams(10 * round_ + number, plain=number < 2))
    assert sorted(file.name for file in (tmp_path / "streams").iterdir()) == [
        "1.safetensors",
        "2.safetensors",
    ]
    for number in range(3):
        found, expected = store.get(number), streams(10 + number, plain=number < 2)
        assert torch.equal(found.dense, expected.dense)
        assert torch.equal(found.corrected, expected.corrected)
        assert (found.plain is None) == (expected.plain is None)
        assert found.plain is None or torch.equal(found.plain, expected.plain)
