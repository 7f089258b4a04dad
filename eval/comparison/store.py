"""What a comparison has measured so far, one file for each piece: it may be killed at any moment and go on.

Knows files and keys; what the keys stand for is the caller's business.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pruning.errors import SecateurError
from pruning.files import write_atomically
from pruning.ranking.divergence import AnswerDivergence

_DIVERGENCES: TypeAdapter[list[AnswerDivergence]] = TypeAdapter(list[AnswerDivergence])


class ComparisonError(SecateurError):
    """A comparison's files cannot be read or written, or there is nothing to compare."""


class ComparisonStore:
    """A directory with the divergences of each cell."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def divergences(
        self, key: str, measure: Callable[[], Sequence[AnswerDivergence]]
    ) -> list[AnswerDivergence]:
        """Those kept under `key`, else measured now and kept. Raises ComparisonError."""
        kept: list[AnswerDivergence] = self._kept(f"cells/{key[:16]}.json", _DIVERGENCES, measure)
        return kept

    def write(self, name: str, text: str) -> Path:
        """A file beside them. Raises ComparisonError."""
        path = self._directory / name
        self._write(path, text.encode())
        return path

    def _kept(self, name: str, kind: TypeAdapter[Any], measure: Callable[[], Any]) -> Any:
        path = self._directory / name
        try:
            return kind.validate_json(path.read_bytes())
        except FileNotFoundError:
            pass
        except OSError as error:
            raise ComparisonError(f"cannot read {path}: {error}") from error
        except ValidationError as error:
            raise ComparisonError(f"{path} is damaged; delete it, and it is measured again") from error
        found = measure()
        self._write(path, kind.dump_json(found))
        return found

    def _write(self, path: Path, content: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        except OSError as error:
            raise ComparisonError(
                f"cannot write {path} ({error}): make room, or name another --out"
            ) from error


def as_json(value: Any) -> str:
    """A result for programs."""
    return json.dumps(asdict(value), indent=1)
