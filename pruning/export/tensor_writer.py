"""Writes safetensors files tensor by tensor: none but the one being written is in memory.

The library's own writer wants all tensors of a file at once, which for a checkpoint is most of the model.
The format: https://huggingface.co/docs/safetensors#format. Knows nothing of models.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

_FORMAT_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_LENGTH_BYTES = 8  # of the little-endian number that a file begins with; the header is padded to it too


@dataclass(frozen=True)
class TensorLayout:
    """What a file's header says of a tensor before its content is known."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape)


def write_tensors(
    file: Path,
    layouts: Mapping[str, TensorLayout],
    tensor_of: Callable[[str], Tensor],
    on_written: Callable[[int], object],
) -> None:
    """Writes a new safetensors file and waits until the disk has it.

    Args:
        layouts: of all tensors, by name.
        tensor_of: gives each tensor, once, when its turn has come.
        on_written: called with a tensor's bytes when they are written.

    Raises:
        OSError: it cannot be written.
    """
    # Wide dtypes first, so that every tensor is aligned, and then by name: as the library does.
    names = sorted(layouts, key=lambda name: (-layouts[name].dtype.itemsize, name))
    with file.open("xb") as target:
        target.write(_header({name: layouts[name] for name in names}))
        for name in names:
            tensor = tensor_of(name)
            assert (tensor.dtype, tuple(tensor.shape)) == (layouts[name].dtype, layouts[name].shape), name
            target.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
            del tensor  # before the next is there
            on_written(layouts[name].nbytes)
        target.flush()
        os.fsync(target.fileno())


def _header(layouts: Mapping[str, TensorLayout]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, layout in layouts.items():
        start, end = end, end + layout.nbytes
        entries[name] = {
            "dtype": _FORMAT_DTYPES[layout.dtype],
            "shape": layout.shape,
            "data_offsets": (start, end),
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text
