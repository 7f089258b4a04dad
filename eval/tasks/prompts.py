"""A task whose prompts lie in files: enough to calibrate on. It has no grading, so it is not a `Task`.

Reads JSON lines; knows no model.
"""

import json
import random
from pathlib import Path

from eval.task import CalibrationSource, TaskError, TaskItem
from eval.tasks.arithmetic import ArithmeticTask

DISTRACTOR_FIELD = "prompt"


class JsonlPrompts:
    """Prompts from a file with one JSON object a line.

    Args:
        name: of the task.
        path: the task's prompts, in `prompt_field` of each object.
        distractors_path: prompts foreign to the task, in the field "prompt" of each object.
    """

    max_new_tokens = 256

    def __init__(self, name: str, path: Path, prompt_field: str, distractors_path: Path) -> None:
        self.name = name
        self._path = path
        self._prompt_field = prompt_field
        self._distractors_path = distractors_path

    def calibration(self, count: int, seed: int) -> list[TaskItem]:
        """`count` of the prompts, drawn with `seed`. Raises TaskError: there are fewer, or none to read."""
        prompts = _draw(self._path, self._prompt_field, count, seed)
        return [TaskItem(f"{self.name}/{i}", prompt, reference="") for i, prompt in enumerate(prompts)]

    def distractors(self, count: int, seed: int) -> list[str]:
        """`count` of the foreign prompts, drawn with `seed`. Raises TaskError likewise."""
        return _draw(self._distractors_path, DISTRACTOR_FIELD, count, seed)


def task_named(name: str) -> CalibrationSource:
    """The built-in task of that name. Raises TaskError that lists them."""
    known = {task.name: task for task in (ArithmeticTask(),)}
    if name not in known:
        raise TaskError(
            f"there is no built-in task {name!r}, only {', '.join(known)}: measure a profile for it from "
            f"your own prompts with `secateur profile --task {name} --prompts FILE --distractors FILE`"
        )
    return known[name]


def _draw(path: Path, field: str, count: int, seed: int) -> list[str]:
    prompts = _read(path, field)
    if len(prompts) < count:
        raise TaskError(f"{path} has {len(prompts)} prompts, {count} were asked for: lower --num-prompts")
    return random.Random(seed).sample(prompts, count)


def _read(path: Path, field: str) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"cannot read the prompts in {path}: {error}") from error
    return [_prompt(path, number, line, field) for number, line in enumerate(lines, start=1) if line.strip()]


def _prompt(path: Path, number: int, line: str, field: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise TaskError(f"{path}:{number} is not JSON: {error}") from error
    prompt = record.get(field) if isinstance(record, dict) else None
    if not isinstance(prompt, str) or not prompt:
        fields = ", ".join(record) if isinstance(record, dict) else "none"
        raise TaskError(f"{path}:{number} has no text in field {field!r}; its fields are {fields}")
    return prompt
