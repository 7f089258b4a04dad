"""Reads JSON lines: objects by line, and texts out of them. What is wrong with a file is named by line.

Knows files; not what their fields mean.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.task import TaskError


@dataclass(frozen=True)
class Record:
    """One line's object. `place` names file and line in messages."""

    place: str
    fields: dict[str, Any]

    def text(self, field: str) -> str:
        """The text in `field`; a number counts as its digits. Raises TaskError where there is none."""
        value = self.fields.get(field)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            fields = ", ".join(self.fields) or "none"
            raise TaskError(f"{self.place} has no text in field {field!r}; its fields are {fields}")
        return value

    def texts(self, field: str) -> list[str]:
        """The list of texts in `field`. Raises TaskError where there is none."""
        value = self.fields.get(field)
        if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
            raise TaskError(f"{self.place} has no list of texts in field {field!r}")
        return value


def read_records(path: Path) -> list[Record]:
    """All objects in `path`, one a line; empty lines are passed over. Raises TaskError."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"cannot read {path}: {error}") from error
    return [_record(f"{path}:{number}", line) for number, line in enumerate(lines, start=1) if line.strip()]


def _record(place: str, line: str) -> Record:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise TaskError(f"{place} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise TaskError(f"{place} is no JSON object but a {type(fields).__name__}")
    return Record(place, fields)
