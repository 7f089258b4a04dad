"""Every task is in the registry, in what `secateur tasks` prints, and in the docs."""

from pathlib import Path

import pytest

from eval.tasks.registry import OWN_TASK, TASKS, TaskOptions, open_calibration, open_task, task_table
from server.__main__ import main

DOCS = Path(__file__).parents[3] / "docs" / "reference" / "tasks.md"


def test_arithmetic_needs_nothing() -> None:
    task = open_task("arithmetic", TaskOptions())
    assert task.num_evaluation is None
    assert task.digest == open_task("arithmetic", TaskOptions()).digest
    assert task.answered("so\n#### 7")
    assert not task.answered("so 7")
    assert open_calibration("arithmetic", TaskOptions()).calibration(2, 0) == task.calibration(2, 0)


def test_the_command_lists_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["tasks"])
    shown = capsys.readouterr().out
    for name, kind in task_table():
        assert f"{name}\n  items   {kind.items}\n  graded  {kind.grading}\n  needs   {kind.needs}" in shown
    assert OWN_TASK in shown


def test_the_docs_have_every_task() -> None:
    text = DOCS.read_text()
    assert all(f"| `{name}` |" in text for name in TASKS)
