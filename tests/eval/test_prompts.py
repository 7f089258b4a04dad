"""Prompts from files: drawn with a seed, and what is wrong with a file is named by line."""

import json
from pathlib import Path

import pytest

from eval.tasks.arithmetic import ArithmeticTask
from eval.task import TaskError
from eval.tasks.prompts import JsonlPrompts, task_named


@pytest.fixture
def source(tmp_path: Path) -> JsonlPrompts:
    for name, field in (("target", "text"), ("other", "prompt")):
        lines = [json.dumps({field: f"{name} {i}"}) for i in range(20)]
        (tmp_path / name).write_text("\n".join(lines) + "\n\n")
    return JsonlPrompts("notes", tmp_path / "target", "text", tmp_path / "other")


def test_prompts_are_drawn_once_each_and_the_same_for_a_seed(source: JsonlPrompts) -> None:
    drawn = [item.prompt for item in source.calibration(10, seed=1)]
    assert len(set(drawn)) == 10
    assert all(prompt.startswith("target ") for prompt in drawn)
    assert drawn == [item.prompt for item in source.calibration(10, seed=1)]
    assert drawn != [item.prompt for item in source.calibration(10, seed=2)]
    assert len(set(source.distractors(20, seed=0))) == 20


def test_too_few_prompts_are_refused(source: JsonlPrompts) -> None:
    with pytest.raises(TaskError, match="has 20 prompts, 21 were asked for"):
        source.calibration(21, seed=0)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", ":2 is not JSON"),
        ('{"prompt": "x"}', "no text in field 'text'; its fields are prompt"),
        ('{"text": 5}', ":2"),
        ('{"text": ""}', ":2"),
        ('"x"', ":2"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "bad"
    path.write_text('{"text": "fine"}\n' + line)
    with pytest.raises(TaskError, match=told):
        JsonlPrompts("notes", path, "text", path).calibration(1, seed=0)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="absent"):
        JsonlPrompts("notes", tmp_path / "absent", "text", tmp_path).calibration(1, seed=0)


def test_built_in_tasks_are_found_by_name() -> None:
    assert isinstance(task_named("arithmetic"), ArithmeticTask)
    with pytest.raises(TaskError, match=r"'poetry', only arithmetic"):
        task_named("poetry")
