"""Holds the residual streams of many batches on their way through a model: in memory as far as a bound
allows, the rest in files. Lossless, so what is computed from them is the same. Knows no model.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from pruning.errors import DeltaError

CONTENT = "streams"  # [2 or 3, sequences, tokens, hidden]


@dataclass(frozen=True, eq=False)
class Streams:
    """Where a batch is in the dense, the corrected and the uncorrected model; [sequences, tokens, hidden].

    Attributes:
        dense: a step ahead of the others, which wait for a layer's correction before its MLP.
        plain: the uncorrected one; None where nobody reports on it.
    """

    dense: Tensor
    corrected: Tensor
    plain: Tensor | None

    @property
    def nbytes(self) -> int:
        return sum(stream.nbytes for stream in (self.dense, self.corrected, self.plain) if stream is not None)


class StreamStore:
    """Streams of batches by number. One that lies in memory stays there; so does one in a file.

    Args:
        directory: for the files; made when it is needed, and the caller's to remove.
        memory_bytes: that streams in memory may take together.
        device: that streams come back on.
    """

    def __init__(self, directory: Path, memory_bytes: int, device: torch.device) -> None:
        self._directory = directory
        self._free_bytes = memory_bytes
        self._device = device
        self._held: dict[int, Streams] = {}
        self._filed: set[int] = set()

    def put(self, number: int, streams: Streams) -> None:
        """Keeps the streams of a batch, in place of those before. Raises DeltaError where a disk is full."""
        if number not in self._held and number not in self._filed:
            if streams.nbytes <= self._free_bytes:
                self._free_bytes -= streams.nbytes
            else:
                self._filed.add(number)
        if number in self._filed:
            self._write(number, streams)
        else:
            self._held[number] = streams

    def get(self, number: int) -> Streams:
        """What was put under `number` last."""
        if number in self._held:
            return self._held[number]
        found = load(self._file(number).read_bytes())[CONTENT].to(self._device)
        return Streams(found[0], found[1], found[2] if len(found) == 3 else None)

    def _write(self, number: int, streams: Streams) -> None:
        present = [s for s in (streams.dense, streams.corrected, streams.plain) if s is not None]
        content = save({CONTENT: torch.stack(present)})
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._file(number).write_bytes(content)
        except OSError as error:
            raise DeltaError(
                f"cannot keep residual streams in {self._directory}: {error}; make room, raise --max-memory, "
                "or lower --num-prompts"
            ) from error

    def _file(self, number: int) -> Path:
        return self._directory / f"{number}.safetensors"
