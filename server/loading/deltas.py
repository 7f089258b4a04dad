"""Reads the deltas that variants are corrected by, and names them. What is in them is pruning/delta.py's."""

import re
from dataclasses import dataclass
from pathlib import Path

from pruning.delta import Delta, load_delta
from pruning.errors import DeltaError
from server.loading.rankings import uses_up

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)


@dataclass(frozen=True)
class NamedDelta:
    """A delta, and what the variant that it corrects is called after: ``math-mini:s30+NAME``."""

    name: str
    delta: Delta


def read_delta(path: Path, task: str) -> NamedDelta:
    """The delta in a file, named as the file without its suffix; its variant is to be judged by `task`.

    Raises:
        DeltaError: it cannot be read, is damaged, was made of the very items that the task judges by, or its
            name is no part of a variant's.
    """
    if not _NAME.fullmatch(path.stem):
        raise DeltaError(
            f"the variant would be called after the file {path.name!r}; such names have up to 64 letters, "
            "digits, '.', '_' and '-': rename the file"
        )
    return NamedDelta(path.stem, load_apart(path, task))


def load_apart(path: Path, task: str) -> Delta:
    """The delta in a file, if it has not seen what the task judges by. Raises DeltaError, as `read_delta`."""
    delta = load_delta(path)
    if uses_up(delta.provenance.task, task):
        made = delta.provenance.task
        raise DeltaError(
            f"{path} was made for {made}, of both halves of {task}: judged by it the variant would look "
            f"better than it is. Use --task {made}, or make one for {task}"
        )
    return delta
