"""A task of your own: a JSON lines file of prompts and, where answers are to be graded, expected answers."""

import re
from collections.abc import Callable, Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Literal

from eval.task import TaskError, TaskItem
from eval.tasks.item_bank import ItemBank, ItemSplit, item_id, split_in_halves
from eval.tasks.records import Record, read_records

Match = Literal["exact", "contains", "numeric", "regex"]

MAX_NEW_TOKENS = 256
GRADING_VERSION = 1  # raise it when grading changes: evidence of another version is no evidence
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


class JsonlTask(ItemBank):
    """Half of a file's prompts judge, half calibrate; an `eval.task.Task`.

    Args:
        match: how an answer is held to the expected one; see `MATCHES`.
    """

    def __init__(self, name: str, items: ItemSplit, distractors_path: Path | None, match: Match) -> None:
        super().__init__(name, MAX_NEW_TOKENS, items, distractors_path, f"jsonl/{GRADING_VERSION}/{match}")
        self._matches = MATCHES[match]
        self._match = match

    def grade(self, item: TaskItem, answer: str) -> bool:
        return self._matches(item.reference, answer)

    def answered(self, answer: str) -> bool:
        """Whether there is a number, or, where no number is asked for, any text: its end cannot be known."""
        return bool(NUMBER.search(answer) if self._match == "numeric" else answer.strip())


def jsonl_prompts(name: str, path: Path, prompt_field: str) -> ItemSplit:
    """The prompts in `path` without answers, enough to calibrate on. Raises TaskError."""
    return split_in_halves(
        (_item(name, record, prompt_field, reference="") for record in read_records(path)), str(path)
    )


def jsonl_items(name: str, path: Path, prompt_field: str, answer_field: str, match: Match) -> ItemSplit:
    """Prompts and expected answers in `path`. Raises TaskError, also where `match` cannot use an answer."""

    def items() -> Iterator[tuple[str, TaskItem]]:
        for record in read_records(path):
            reference = record.text(answer_field)
            _check_reference(record.place, reference, match)
            yield _item(name, record, prompt_field, reference)

    return split_in_halves(items(), str(path))


def _item(name: str, record: Record, prompt_field: str, reference: str) -> tuple[str, TaskItem]:
    prompt = record.text(prompt_field)
    return prompt, TaskItem(item_id(name, prompt), prompt, reference)


def _check_reference(place: str, reference: str, match: Match) -> None:
    if match == "numeric" and _number(reference) is None:
        raise TaskError(f"{place}: the expected answer {reference!r} is no number; choose another --match")
    if match == "regex":
        try:
            re.compile(reference)
        except re.error as error:
            raise TaskError(f"{place}: the expected answer is no regular expression: {error}") from error


def _number(text: str) -> Decimal | None:
    try:
        number = Decimal(text.strip().replace(",", ""))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None  # no answer equals "nan"


def _same_number(expected: str, answer: str) -> bool:
    """The last number of the answer counts."""
    found = NUMBER.findall(answer)
    return bool(found) and _number(found[-1]) == _number(expected)


MATCHES: dict[Match, Callable[[str, str], bool]] = {
    "exact": lambda expected, answer: answer.strip() == expected.strip(),
    "contains": lambda expected, answer: expected in answer,
    "numeric": _same_number,
    "regex": lambda expected, answer: re.search(expected, answer) is not None,
}
