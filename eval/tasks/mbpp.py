"""MBPP: small Python tasks (Austin et al., 2021, arXiv 2108.07732), graded by running their tests."""

from collections.abc import Iterator
from pathlib import Path

from eval.sandbox.sandbox import Sandbox
from eval.task import TaskError, TaskItem
from eval.tasks.code import MAX_NEW_TOKENS, answer_code, code_answered, passes
from eval.tasks.item_bank import ItemBank, ItemSplit, item_id, split_in_halves
from eval.tasks.records import Record, read_records

NAME = "mbpp"
GRADING = "mbpp/1"  # another number when grading changes: evidence of another version is no evidence


class MbppTask(ItemBank):
    """Half of a file's tasks judge, half calibrate; an `eval.task.Task`."""

    def __init__(self, items: ItemSplit, distractors_path: Path | None, sandbox: Sandbox) -> None:
        super().__init__(NAME, MAX_NEW_TOKENS, items, distractors_path, GRADING)
        self._sandbox = sandbox

    def grade(self, item: TaskItem, answer: str) -> bool:
        """Whether the answer's code passes the task's tests, `item.reference`."""
        return passes(self._sandbox, f"{answer_code(answer)}\n{item.reference}\n")

    def answered(self, answer: str) -> bool:
        return code_answered(answer)


def mbpp_items(path: Path | None) -> ItemSplit:
    """The tasks in a JSON lines file with `text` and `test_list`, and maybe `test_setup_code`.

    Raises:
        TaskError: there is no file, or it cannot be read.
    """
    if path is None:
        raise TaskError("mbpp has no file: give its tasks as JSON lines with --prompts")
    return split_in_halves(_items(read_records(path)), str(path))


def _items(records: list[Record]) -> Iterator[tuple[str, TaskItem]]:
    for record in records:
        question, tests = record.text("text").strip(), record.texts("test_list")
        setup = str(record.fields.get("test_setup_code") or "")
        shown = "\n".join(tests)
        prompt = (
            f"{question} Answer with Python code in one fenced block. It has to pass these tests:\n\n"
            f"```python\n{shown}\n```"
        )
        yield question, TaskItem(item_id(NAME, prompt), prompt, "\n".join([setup, *tests]))
