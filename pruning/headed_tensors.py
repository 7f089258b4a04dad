"""Reads tensors that lie in a safetensors file under a header of ours. Knows neither what they mean."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor


class DamagedFileError(Exception):
    """A file is no safetensors file with such a header. The message says what is wrong with it."""


def read_headed(path: Path, header: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON object in the metadata called `header`, and all tensors by name, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            told = json.loads((file.metadata() or {})[header])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DamagedFileError(repr(error)) from error
    if not isinstance(told, dict):
        raise DamagedFileError(f"{header} is no object")
    return told, tensors
