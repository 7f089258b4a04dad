"""Reads tensors, whole or by rows, from the safetensors shards of a checkpoint directory.

Knows file formats, not models: which tensors there should be is the caller's business. Nothing is unpickled.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pruning.errors import ModelError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class TensorReader:
    """All tensors of a checkpoint by name, whichever shard they are in. Made by `open_tensors`.

    Tensors come on the CPU, in the dtype of the file, and may be views of the mapped file: clone what
    has to live on, or be written to, after the reader is closed.
    """

    def __init__(self, path: Path, shards: Mapping[str, Any]) -> None:
        self._path = path
        self._shards = shards  # file name -> its safe_open
        self._handles = {name: shard for shard in shards.values() for name in shard.keys()}  # noqa: SIM118

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._handles)

    @property
    def files(self) -> dict[str, list[str]]:
        """The names of the tensors in each file, by the file's name."""
        return {
            file: [name for name in shard.keys() if self._handles[name] is shard]  # noqa: SIM118
            for file, shard in self._shards.items()
        }

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._handle(name).get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        return self.rows(name, 0, 0).dtype  # the format's own names for dtypes ("BF16") stay in the library

    def get(self, name: str) -> Tensor:
        """The whole tensor. Raises ModelError where there is none of that name."""
        tensor = self._handle(name).get_tensor(name)
        assert isinstance(tensor, Tensor)
        return tensor

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` (exclusive) of the first dimension; the rest is never read.

        Raises:
            ModelError: no such tensor, or rows that it does not have.
        """
        shape = self.shape(name)
        if not shape or not 0 <= start <= stop <= shape[0]:
            raise ModelError(f"{name} has shape {list(shape)}; rows {start} to {stop} were asked for")
        tensor = self._handle(name).get_slice(name)[start:stop]
        assert isinstance(tensor, Tensor)
        return tensor

    def _handle(self, name: str) -> Any:
        if name not in self._handles:
            raise ModelError(
                f"{self._path} has no tensor {name!r}; the checkpoint is incomplete, get it again"
            )
        return self._handles[name]


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorReader]:
    """Opens every shard of the checkpoint in directory `path`.

    Raises:
        ModelError: no safetensors, or a missing or damaged shard.
    """
    with ExitStack() as stack:
        yield TensorReader(path, {file.name: stack.enter_context(_open(file)) for file in shard_files(path)})


def shard_files(path: Path) -> list[Path]:
    """The safetensors files that make up the checkpoint in directory `path`, sorted by name.

    Raises:
        ModelError: there are none (pickled weights are not read), or one that the index lists is missing.
    """
    if (path / SINGLE_FILE).is_file():
        return [path / SINGLE_FILE]
    if not (path / INDEX_FILE).is_file():
        pickled = sorted(file.name for suffix in ("bin", "pt", "pth") for file in path.glob(f"*.{suffix}"))
        if pickled:
            raise ModelError(
                f"{path} has its weights in {', '.join(pickled)}, which would have to be unpickled, and "
                f"unpickling runs whatever code a file contains; convert them to safetensors first"
            )
        raise ModelError(f"{path} has neither {SINGLE_FILE} nor {INDEX_FILE}; it is not a whole checkpoint")
    try:
        weight_map = json.loads((path / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"]
        files = sorted({path / name for name in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path / INDEX_FILE} is damaged ({error!r}); get the file again") from error
    for file in files:
        if not file.is_file():
            raise ModelError(
                f"{file} is missing, though {INDEX_FILE} lists it; download the rest of the model"
            )
    return files


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is truncated or damaged ({error}); get the file again") from error
