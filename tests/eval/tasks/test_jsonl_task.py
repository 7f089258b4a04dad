"""Tasks of one's own: halves that never meet, seeded draws, four ways to match, faults named by line."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.task import Task, TaskError, TaskItem
from eval.tasks.registry import TaskOptions, open_calibration, open_task

NUM_LINES = 40

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def lines(name: str, *records: dict[str, Any]) -> Path:
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, records)) + "\n\n")
        return path

    return lines


@pytest.fixture
def options(write: Write) -> TaskOptions:
    problems = [{"text": f"target {i}", "label": i} for i in range(NUM_LINES)]
    others = [{"prompt": f"other {i}"} for i in range(20)]
    return TaskOptions(
        path=write("target", *problems),
        distractors_path=write("other", *others),
        prompt_field="text",
        answer_field="label",
        match="numeric",
    )


@pytest.fixture
def task(options: TaskOptions) -> Task:
    return open_task("notes", options)


def prompts(items: list[TaskItem]) -> list[str]:
    return [item.prompt for item in items]


def halves(task: Task, count: int = NUM_LINES) -> tuple[set[str], set[str]]:
    held_out = task.num_evaluation
    assert held_out is not None
    evaluation = set(prompts(task.evaluation(held_out, seed=0)))
    return set(prompts(task.calibration(count - held_out, seed=0))), evaluation


def test_every_line_either_calibrates_or_judges(task: Task) -> None:
    calibration, evaluation = halves(task)
    assert calibration | evaluation == {f"target {i}" for i in range(NUM_LINES)}
    assert not calibration & evaluation
    assert min(len(calibration), len(evaluation)) > NUM_LINES / 4


def test_the_side_of_a_prompt_depends_on_nothing_else(task: Task, write: Write) -> None:
    _, evaluation = halves(task)
    shuffled = write("shuffled", *({"prompt": f"target {i}"} for i in reversed(range(0, 60, 2))))
    others = TaskOptions(path=shuffled, distractors_path=shuffled)
    drawn = open_calibration("renamed", others)
    assert not set(prompts(drawn.calibration(10, seed=3))) & evaluation


def test_a_prompt_that_occurs_twice_counts_once(write: Write) -> None:
    path = write("twice", *({"prompt": f"p{i % 10}", "answer": "x"} for i in range(30)))
    calibration, evaluation = halves(open_task("twice", TaskOptions(path=path, answer_field="answer")), 10)
    assert calibration | evaluation == {f"p{i}" for i in range(10)}


def test_draws_are_the_same_for_a_seed_and_fewer_are_the_first_of_more(task: Task) -> None:
    for draw in (task.calibration, task.evaluation):
        assert draw(8, 1) == draw(8, 1)
        assert draw(8, 1)[:3] == draw(3, 1)
        assert draw(8, 1) != draw(8, 2)
        assert len({item.item_id for item in draw(8, 1)}) == 8
    assert len(set(task.distractors(20, seed=0))) == 20
    assert all(prompt.startswith("other ") for prompt in task.distractors(20, seed=0))


def test_too_few_are_refused(task: Task) -> None:
    for draw in (task.calibration, task.evaluation):
        with pytest.raises(TaskError, match=rf"has \d+ items for {draw.__name__}, 41 were asked for"):
            draw(NUM_LINES + 1, 0)
    with pytest.raises(TaskError, match="has 20 prompts, 21 were asked for"):
        task.distractors(21, seed=0)


def test_the_digest_names_what_is_judged_and_how(options: TaskOptions, task: Task, write: Write) -> None:
    assert task.digest == open_task("notes", options).digest
    assert task.digest != open_task("other", options).digest
    assert task.digest != open_task("notes", replace(options, match="exact")).digest
    held_out = task.evaluation(1, seed=0)[0].prompt
    problems = [{"text": f"target {i}", "label": i} for i in range(NUM_LINES)]
    relabelled = [{**p, "label": 1_000} if p["text"] == held_out else p for p in problems]
    changed = replace(options, path=write("changed", *relabelled))
    assert task.digest != open_task("notes", changed).digest


@pytest.mark.parametrize(
    ("match", "expected", "right", "wrong"),
    [
        ("exact", "Paris", " Paris\n", "It is Paris"),
        ("contains", "Paris", "It is Paris.", "It is paris."),
        ("numeric", 1234.5, "so 3 times: 1,234.50", "1,234.50, or 12"),
        ("numeric", "-3", "#### -3", "#### 3"),
        ("regex", "(?i)^paris", "PARIS it is", "in Paris"),
    ],
)
def test_answers_are_held_to_what_is_expected(
    write: Write, match: Any, expected: object, right: str, wrong: str
) -> None:
    path = write("one", *({"prompt": f"p{i}", "answer": expected} for i in range(16)))
    task = open_task("one", TaskOptions(path=path, answer_field="answer", match=match))
    item = task.evaluation(1, seed=0)[0]
    assert task.grade(item, right)
    assert not task.grade(item, wrong)
    assert not task.grade(item, "")
    assert task.answered(right)
    assert not task.answered(" \n")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", ":2 is not JSON"),
        ('{"prompt": "x"}', "no text in field 'text'; its fields are prompt"),
        ('{"text": ["x"]}', ":2"),
        ('{"text": true}', ":2"),
        ('{"text": " "}', ":2"),
        ('"x"', ":2 is no JSON object but a str"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "bad"
    path.write_text('{"text": "fine"}\n' + line)
    with pytest.raises(TaskError, match=told):
        open_calibration("notes", TaskOptions(path=path, distractors_path=path, prompt_field="text"))


@pytest.mark.parametrize(
    ("match", "answer", "told"),
    [
        ("numeric", "forty", ":1: .*'forty' is no number"),
        ("numeric", "NaN", ":1: .*'NaN' is no number"),
        ("regex", "(", ":1: .*no regular expression"),
    ],
)
def test_an_answer_that_cannot_be_matched_is_named(write: Write, match: Any, answer: str, told: str) -> None:
    path = write("bad", {"prompt": "p", "answer": answer})
    with pytest.raises(TaskError, match=told):
        open_task("bad", TaskOptions(path=path, answer_field="answer", match=match))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    options = TaskOptions(path=tmp_path / "absent", distractors_path=tmp_path, answer_field="answer")
    for opened in (open_task, open_calibration):
        with pytest.raises(TaskError, match="absent"):
            opened("notes", options)


def test_what_is_missing_is_told(options: TaskOptions) -> None:
    with pytest.raises(TaskError, match="--answer-field"):
        open_task("notes", replace(options, answer_field=None))
    with pytest.raises(TaskError, match="--distractors"):
        open_calibration("notes", replace(options, distractors_path=None)).distractors(1, 0)
    with pytest.raises(TaskError, match=r"'poetry', only arithmetic.*--prompts"):
        open_task("poetry", TaskOptions())
