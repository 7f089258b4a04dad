"""How far a training run has come, in memory and on disk. Knows no networks and no losses.

One file, written whole or not at all, holds all that a run needs to go on to the same result.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import log
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from pruning.errors import DeltaError
from pruning.files import write_atomically
from pruning.headed_tensors import DamagedFileError, read_headed

METADATA_KEY = "secateur_recovery"


@dataclass(frozen=True)
class StepLoss:
    """Of one training step, before it: means over its answer tokens, nats.

    Attributes:
        seconds: of training, all runs together, when it was done.
    """

    step: int
    learning_rate: float
    cross_entropy: float
    divergence: float
    fed_tokens: int
    seconds: float


@dataclass(frozen=True)
class VariantLosses:
    """On answers that are not trained on: of each variant, means over tokens, nats."""

    cross_entropy: tuple[float, ...]
    divergence: tuple[float, ...]

    @property
    def score(self) -> float:
        """What is to be small: the mean logarithm, for variants differ by orders of magnitude."""
        return sum(log(max(value, 1e-12)) for value in self.divergence) / len(self.divergence)


@dataclass(frozen=True)
class HeldOutLoss(VariantLosses):
    """Measured after `step` steps and so many seconds of training."""

    step: int
    seconds: float


@dataclass
class Progress:
    """What has happened so far."""

    steps: list[StepLoss] = field(default_factory=list)
    held_out: list[HeldOutLoss] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def best(self) -> int:
        """Which of `held_out`; the earlier one of equals."""
        return min(range(len(self.held_out)), key=lambda index: self.held_out[index].score)


@dataclass(frozen=True)
class ProgressFile:
    """Where a run's progress is kept.

    Attributes:
        key: a digest of all that decides how the run goes.
    """

    path: Path
    key: str

    def save(self, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
        """Raises DeltaError where it cannot be written."""
        header = {"key": self.key, "progress": asdict(progress)}
        content = save(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            metadata={METADATA_KEY: json.dumps(header)},
        )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, content)
        except OSError as error:
            raise DeltaError(
                f"cannot keep the training's progress in {self.path} ({len(content):,} bytes): {error}; make "
                "room and run the command again: it goes on where it was last kept"
            ) from error

    def load(self) -> tuple[Progress, dict[str, Tensor]] | None:
        """None where nothing is kept. Raises DeltaError where it is damaged or another run's."""
        if not self.path.exists():
            return None
        try:
            header, tensors = read_headed(self.path, METADATA_KEY)
        except DamagedFileError as error:
            raise DeltaError(f"{self.path} is damaged ({error}); remove it to begin anew") from error
        if header.get("key") != self.key:
            raise DeltaError(
                f"{self.path} is of an unfinished training with other settings, or of another model: remove "
                "it to begin anew, or run with those settings to go on"
            )
        return _progress(header["progress"]), tensors


def _progress(record: Mapping[str, Any]) -> Progress:
    held_out: Sequence[Mapping[str, Any]] = record["held_out"]
    return Progress(
        steps=[StepLoss(**step) for step in record["steps"]],
        held_out=[
            HeldOutLoss(
                tuple(found["cross_entropy"]), tuple(found["divergence"]), found["step"], found["seconds"]
            )
            for found in held_out
        ],
        seconds=record["seconds"],
    )
