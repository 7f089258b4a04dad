"""GSM8K is graded by the number an answer ends with; what cannot be bounded is not evaluated."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from eval.task import Task, TaskError, TaskItem
from eval.tasks import gsm8k
from eval.tasks.registry import TaskOptions, open_calibration, open_task


def problem(number: int, answer: str = "So 1+1 = <<1+1=2>>2.\n#### 1,234") -> dict[str, str]:
    return {"question": f"How many are {number}?", "answer": answer}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "gsm8k.jsonl"
    file.write_text("\n".join(json.dumps(problem(number)) for number in range(40)))
    return file


@pytest.fixture
def task(path: Path) -> Task:
    return open_task("gsm8k", TaskOptions(path=path))


def item(reference: str = "1234") -> TaskItem:
    return TaskItem("x", "How many?", reference)


def test_the_halves_never_meet(task: Task, path: Path) -> None:
    assert task.num_evaluation is not None
    judged = {i.item_id for i in task.evaluation(task.num_evaluation, seed=0)}
    measured = open_calibration("gsm8k", TaskOptions(path=path)).calibration(40 - len(judged), seed=7)
    assert not judged & {i.item_id for i in measured}
    assert len(judged) + len({i.item_id for i in measured}) == 40


def test_held_out_problems_never_calibrate(tmp_path: Path) -> None:
    """As the studies draw them: 300 to judge by, all that there are to calibrate on, some problems twice."""
    numbers = [*range(900), *range(0, 900, 7)]
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("\n".join(json.dumps(problem(number)) for number in numbers))
    judged = {i.prompt for i in open_task("gsm8k", TaskOptions(path=path)).evaluation(300, seed=0)}
    source = open_calibration("gsm8k", TaskOptions(path=path))
    calibrating = {i.prompt for i in source.calibration(400, seed=0)}
    for seed in range(1, 5):
        calibrating |= {i.prompt for i in source.calibration(400, seed=seed)}
    assert len(judged) == 300
    assert len(calibrating) >= 400
    assert not judged & calibrating


def test_prompts_ask_for_the_final_line_and_references_are_plain_numbers(task: Task) -> None:
    drawn = task.evaluation(5, seed=1)
    assert all(i.prompt.startswith("How many are ") and "#### N" in i.prompt for i in drawn)
    assert {i.reference for i in drawn} == {"1234"}
    assert len(task.distractors(9, seed=0)) == 9


@pytest.mark.parametrize(
    "answer",
    [
        "#### 1234",
        "so\n#### 1,234\n",
        "#### $1,234.00",
        "#### 1234 eggs",
        "#### 7\nno\n#### 1234",
        "The answer is \\boxed{1234}.",
        "first \\boxed{7}, then \\boxed{1{,}234}",
        "\\boxed{\\frac{2468}{2}}",
        "\\boxed{\\$1\\,234\\text{ eggs}}",
        "\\boxed{1234.00 dollars}",
        "\\boxed{7}\n#### 1234",
        "#### **1234**",
        "#### 1234!",
        "#### $1,234 every day at the farmers' market, as was asked for",
        "#### 1234 eggs in 3 boxes",
        "#### 1230 + 4",
        "#### 1230 + 4 = 1234",
        "#### Tom has 1234",
        "#### 2468/2",
        "#### 1234%",
    ],
)
def test_grade_accepts(task: Task, answer: str) -> None:
    assert task.answered(answer)
    assert task.grade(item(), answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "1234",
        "#### 1235",
        "#### -1234",
        "#### 1234\n#### 7",
        "\\boxed{7}",
        "#### none",
        "#### 12340",
        "#### 15 (3 more than 1234)",
    ],
)
def test_grade_rejects(task: Task, answer: str) -> None:
    assert not task.grade(item(), answer)


@pytest.mark.parametrize(
    "answer", ["#### 9^9^9^9", "#### 99999!!", "#### 9**9**9**9", "\\boxed{" + "9*" * 999 + "9}"]
)
def test_what_would_take_for_ever_is_wrong_at_once(task: Task, answer: str) -> None:
    assert not task.grade(item(), answer)


@pytest.mark.parametrize("unit", ["\n", "\r\n", "#### \n"])
def test_no_loop_keeps_the_event_loop_busy(task: Task, unit: str) -> None:
    """The square of this length is hours."""
    assert not task.answered(unit * 400_000 + "x")
    assert task.answered(f"#### x{' ' * 400_000}y")


def test_an_answer_is_complete_with_its_number(task: Task) -> None:
    assert not task.answered("Tom has 1234 eggs.\n####")


def test_a_problem_without_a_number_is_named(path: Path) -> None:
    path.write_text(json.dumps(problem(1)) + "\n" + json.dumps(problem(2, answer="#### many")))
    with pytest.raises(TaskError, match=r":2: `answer` does not end with #### and a number"):
        open_task("gsm8k", TaskOptions(path=path))


def test_without_a_file_and_without_datasets_the_ways_out_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TaskError, match=r"--prompts, or pip install datasets"):
        open_task("gsm8k", TaskOptions())


def test_without_math_verify_it_is_told_before_anything_runs(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gsm8k._math_verify.cache_clear()
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(TaskError, match=r"secateur\[eval\]"):
        open_task("gsm8k", TaskOptions(path=path))


class MockDatasets(ModuleType):
    """A mock of the package `datasets`, for tests reach no hub: it has 40 problems, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__("datasets")
        self.asked: list[tuple[Any, ...]] = []
        self.error = error
        self.exceptions = SimpleNamespace(DatasetsError=MockDatasetsError)

    def load_dataset(self, name: str, config: str, *, split: str) -> list[dict[str, str]]:
        self.asked.append((name, config, split))
        if self.error is not None:
            raise self.error
        return [problem(number) for number in range(40)]


class MockDatasetsError(Exception):
    """The mock's error for a damaged download: as the package's, neither an OSError nor a ValueError."""


def test_without_a_file_the_hub_s_training_split_is_as_good_as_a_file(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    mock = MockDatasets()
    monkeypatch.setitem(sys.modules, "datasets", mock)
    fetched = open_task("gsm8k", TaskOptions())
    assert mock.asked == [("openai/gsm8k", "main", "train")]  # the test split stays unseen
    assert fetched.num_evaluation is not None
    assert fetched.digest == task.digest
    assert fetched.evaluation(5, seed=1) == task.evaluation(5, seed=1)


@pytest.mark.parametrize(
    "error",
    [ConnectionError("no way to the hub"), ValueError("no config main"), MockDatasetsError("damaged")],
)
def test_a_hub_that_cannot_be_had_is_told_with_the_way_out(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", MockDatasets(error))
    with pytest.raises(TaskError, match=f"cannot fetch openai/gsm8k.*{error}; give .* with --prompts"):
        open_task("gsm8k", TaskOptions())


def test_the_real_package_reads_a_repository_on_disk_as_it_would_the_hub_s(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory of that name, seen from the working directory, goes before the hub's."""
    pytest.importorskip("datasets", reason="the package datasets is not installed")
    repository = tmp_path / "openai" / "gsm8k"
    repository.mkdir(parents=True)
    shutil.copy(path, repository / "train.jsonl")
    (repository / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: train.jsonl\n---\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert gsm8k.gsm8k_items(None).evaluation == gsm8k.gsm8k_items(path).evaluation
