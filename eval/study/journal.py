"""What a study has found out so far, one JSON object a line: it may be killed at any moment and go on.

Knows the file; what the keys stand for is the study's business. One process at a time may write.
"""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, TextIO, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from eval.grading import GradedAnswer
from eval.subject import VariantFacts
from pruning.errors import SecateurError
from pruning.files import write_atomically

logger = logging.getLogger(__name__)


class JournalError(SecateurError):
    """The journal cannot be read or written, or another process writes it."""


class AnswerLine(BaseModel):
    """One item of one cell is graded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["answer"] = "answer"
    cell: str
    item: str
    answer: GradedAnswer


class VariantLine(BaseModel):
    """What a cell's variant costs, and its speed where that is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["variant"] = "variant"
    cell: str
    facts: VariantFacts
    tokens_per_second: float | None


class RunLine(BaseModel):
    """The study ran for so long, until something ended it; one that is killed does not come to write it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["run"] = "run"
    command: str
    seconds: float


Line: TypeAlias = AnswerLine | VariantLine | RunLine
_LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])


class Journal:
    """The lines of one file. Made by `open_journal`.

    Attributes:
        answers: (cell, item) -> the graded answer.
        variants: cell -> what its variant costs.
        runs: oldest first.
    """

    def __init__(self, path: Path, file: TextIO, lines: list[Line]) -> None:
        self.answers: dict[tuple[str, str], GradedAnswer] = {}
        self.variants: dict[str, VariantLine] = {}
        self.runs: list[RunLine] = []
        self._path = path
        self._file = file
        for line in lines:
            self._take(line)

    def add(self, line: Line) -> None:
        """Writes a line, out of this process's hands when it returns. Raises JournalError."""
        try:
            self._file.write(line.model_dump_json() + "\n")
            self._file.flush()
        except OSError as error:
            raise JournalError(f"cannot write {self._path} ({error}): make room and run it again") from error
        self._take(line)

    def _take(self, line: Line) -> None:
        if isinstance(line, AnswerLine):
            self.answers[line.cell, line.item] = line.answer
        elif isinstance(line, VariantLine):
            self.variants[line.cell] = line
        else:
            self.runs.append(line)


@contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """Reads what there is and holds the file for writing.

    Lines that cannot be read, such as one that was half written when the process was killed, are moved to a
    file of their own beside it; what they said is measured again.

    Raises:
        JournalError: the file cannot be used, or another process holds it.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise JournalError(
                    f"another process is writing {path}: wait for it, or name another --out"
                ) from error
            lines = _read(path)
            with path.open("a", encoding="utf-8") as file:
                yield Journal(path, file, lines)
    except OSError as error:
        raise JournalError(f"cannot use {path}: {error}") from error


def _read(path: Path) -> list[Line]:
    if not path.exists():
        return []
    good: list[Line] = []
    damaged: list[bytes] = []
    content = path.read_bytes()
    for raw in content.splitlines():
        try:
            good.append(_LINE.validate_json(raw))
        except ValidationError:
            damaged.append(raw)
    if damaged:
        aside = path.with_name(f"{path.stem}.damaged{path.suffix}")
        with aside.open("ab") as file:
            file.writelines(line + b"\n" for line in damaged)
        logger.warning("%d lines of %s cannot be read; they are now in %s", len(damaged), path, aside)
    if damaged or (content and not content.endswith(b"\n")):
        write_atomically(path, "".join(f"{line.model_dump_json()}\n" for line in good).encode())
    return good
