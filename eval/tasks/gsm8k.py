"""GSM8K: grade-school word problems (Cobbe et al., 2021, arXiv 2110.14168), graded by their number.

Numbers are read by math-verify; which part of an answer is its number is decided here.
"""

import logging
import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from pathlib import Path
from typing import Any

from eval.task import TaskError, TaskItem
from eval.tasks.item_bank import ItemBank, ItemSplit, item_id, split_in_halves
from eval.tasks.records import Record, read_records

NAME = "gsm8k"
MAX_NEW_TOKENS = 400
GRADING = "gsm8k/2"  # another number when grading changes: evidence of another version is no evidence
HUB_DATASET = ("openai/gsm8k", "main")

INSTRUCTION = "Solve the problem step by step. End with a line that gives the number alone: #### N"
# So written that a loop of empty lines or spaces takes no time that grows with its square.
FINAL = re.compile(r"^[^\S\n]*####[ \t]*(\S.*)$", re.MULTILINE)
BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
# A number that a line begins with, and what makes another number of it: digits, a sum, a percent sign, an
# equation. Words do not, nor what stands in brackets.
LEADING = re.compile(r"[$*_\s]*([+-]?)[$*]*(\d[\d,]*(?:\.\d+)?)")
GOES_ON = re.compile(r"[.eE]?\d|\s*[-+*/^:\u00d7\u00f7]+\s*[\d$(]|\s*%|\s+\d|.*=")
# A number of a word problem is short and has neither powers nor factorials. Reading those is not bounded in
# time, and math-verify's own time limit works in the main thread alone.
MAX_NUMBER_CHARS = 40
LATEX_IN_NUMBERS = re.compile(
    r"\{,\}|\\[,!; $]"
)  # 1{,}234, 1\,234, \$18: math-verify would read 1, 1, nothing
UNBOUNDED = re.compile(r"[\^!]|\*\*")


class Gsm8kTask(ItemBank):
    """Half of a file's problems judge, half calibrate; an `eval.task.Task`.

    The number is that of the last line ``#### N``; failing that, of the last ``\\boxed{N}``. Where the line
    begins with a number, that one; else what math-verify reads.
    """

    def __init__(self, items: ItemSplit, distractors_path: Path | None) -> None:
        _math_verify()  # a missing package is told at the start
        super().__init__(NAME, MAX_NEW_TOKENS, items, distractors_path, GRADING)

    def grade(self, item: TaskItem, answer: str) -> bool:
        """Whether the number that `answer` ends with equals `item.reference`."""
        stated = stated_number(answer)
        if stated is None:
            return False
        leading = LEADING.match(stated)
        if leading and not GOES_ON.match(stated, leading.end()):
            return Decimal(leading[1] + leading[2].replace(",", "")) == Decimal(item.reference)
        if len(stated) > MAX_NUMBER_CHARS or UNBOUNDED.search(stated):
            return False
        library = _math_verify()
        configs = [library.ExprExtractionConfig(), library.LatexExtractionConfig()]
        read = library.parse(stated, configs, parsing_timeout=None)
        expected = library.parse(item.reference, configs, parsing_timeout=None)
        return bool(library.verify(expected, read, timeout_seconds=None))

    def answered(self, answer: str) -> bool:
        """Whether there is a line ``#### N`` or a ``\\boxed{N}``."""
        return stated_number(answer) is not None


def stated_number(answer: str) -> str | None:
    """The part of `answer` that states its result."""
    found = FINAL.findall(answer) or BOXED.findall(answer)
    return LATEX_IN_NUMBERS.sub("", found[-1].rstrip(" \t")) if found else None


def gsm8k_items(path: Path | None) -> ItemSplit:
    """The problems in a JSON lines file of `question` and `answer`; without one, the hub's training split.

    Raises:
        TaskError: they cannot be read.
    """
    records = _hub_records() if path is None else read_records(path)
    return split_in_halves(_items(records), str(path) if path else HUB_DATASET[0])


def _items(records: list[Record]) -> Iterator[tuple[str, TaskItem]]:
    for record in records:
        question = record.text("question").strip()
        prompt = f"{question}\n\n{INSTRUCTION}"
        yield question, TaskItem(item_id(NAME, prompt), prompt, _reference(record))


def _reference(record: Record) -> str:
    stated = FINAL.findall(record.text("answer"))
    try:
        return str(Decimal(stated[-1].replace(",", "")))
    except (IndexError, InvalidOperation) as error:
        raise TaskError(f"{record.place}: `answer` does not end with #### and a number") from error


def _hub_records() -> list[Record]:
    """The training split, so that GSM8K's test problems stay unseen by calibration."""
    way_out = "give a JSON lines file of problems with --prompts"
    try:
        import datasets
    except ImportError as error:
        raise TaskError(f"gsm8k has no file: {way_out}, or pip install datasets") from error
    try:
        rows = datasets.load_dataset(*HUB_DATASET, split="train")
    # OSError: the hub or the disk; ValueError: another data set of that name; the rest: a damaged download.
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise TaskError(f"cannot fetch {HUB_DATASET[0]} from the hub: {error}; {way_out}") from error
    return [Record(f"{HUB_DATASET[0]}:{number}", dict(row)) for number, row in enumerate(rows, start=1)]


@lru_cache(maxsize=1)
def _math_verify() -> Any:
    try:
        import math_verify
    except ImportError as error:
        raise TaskError("gsm8k is graded with math-verify: pip install 'secateur[eval]'") from error
    # It warns that we have switched its time limit off; see MAX_NUMBER_CHARS for what stands in for it.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify
