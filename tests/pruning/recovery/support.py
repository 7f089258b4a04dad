"""Tiny networks and what they say, for the tests of recovery."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from pruning.calibration.batches import TokenSequence
from pruning.calibration.calibration import load_network
from pruning.checkpoints.checkpoint import Checkpoint, open_checkpoint
from pruning.recovery.dense import TaughtSequence
from pruning.recovery.loss import TopTokens
from pruning.recovery.network import AdaptedNetwork, AdapterSettings
from pruning.recovery.processes import Processes
from tests.tiny import tiny_checkpoint, tiny_ranking

WIDE, NARROW = (64, 192, 40), (64, 48, 24)
ADAPTER = AdapterSettings(rank=4, alpha=8.0, seed=0)
TOP = 8
ALONE = Processes(torch.device("cpu"))


def open_tiny(path: Path, family: str = "qwen2", **overrides: object) -> Checkpoint:
    return open_checkpoint(str(tiny_checkpoint(path / "tiny", family, **overrides)), path / "cache")


def network(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return load_network(checkpoint, torch.device("cpu"), dtype)


def adapted(
    checkpoint: Checkpoint, widths: Sequence[Sequence[int]] = (WIDE,), **options: object
) -> AdaptedNetwork:
    return AdaptedNetwork(network(checkpoint), tiny_ranking(), widths, ADAPTER, **options)


def stir(net: AdaptedNetwork, seed: int = 0) -> None:
    """Gives every matrix values that nobody can overlook."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def random_sequences(count: int, seed: int = 0) -> list[TokenSequence]:
    generator = torch.Generator().manual_seed(seed)

    def some(least: int, most: int) -> tuple[int, ...]:
        length = int(torch.randint(least, most, (1,), generator=generator))
        return tuple(torch.randint(0, 256, (length,), generator=generator).tolist())

    return [TokenSequence(some(1, 30), some(1, 12)) for _ in range(count)]


def taught(checkpoint: Checkpoint, sequences: Sequence[TokenSequence]) -> list[TaughtSequence]:
    """With what the dense model holds likely along them."""
    dense = network(checkpoint)
    found = []
    for sequence in sequences:
        with torch.no_grad():
            logits = dense(torch.tensor([sequence.fed])).logits[0, len(sequence.prompt) - 1 :]
        found.append(TaughtSequence(sequence, TopTokens.of(logits, TOP)))
    return found
