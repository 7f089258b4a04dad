"""Problems are right, fresh, disjoint between streams, the same everywhere, and graded by their last line."""

import hashlib
import re
import subprocess
import sys
from itertools import islice

import pytest

from eval.task import TaskItem
from eval.tasks.arithmetic import ArithmeticTask
from eval.tasks.word_problems import problems, split_of

SPLITS = ("training", "calibration", "evaluation")
EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


@pytest.fixture(scope="module")
def sample():
    return {split: list(islice(problems(split, seed=3), 400)) for split in SPLITS}


@pytest.fixture
def task():
    return ArithmeticTask()


def item(reference="42"):
    return TaskItem("x", "How many?", reference)


def test_every_step_is_a_true_equation_and_the_last_one_is_the_result(sample):
    for problem in (p for split in SPLITS for p in sample[split]):
        *steps, last = problem.answer.split("\n")
        assert 2 <= len(steps) <= 4
        for step in steps:
            left, sign, right, result = EQUATION.search(step).groups()
            exact = {"+": "__add__", "-": "__sub__", "*": "__mul__", "/": "__truediv__"}[sign]
            assert getattr(float(left), exact)(float(right)) == int(result)
            assert 0 <= int(result) <= 999
        assert last == f"#### {problem.result}" == f"#### {result}"


def test_every_operand_is_told_or_was_worked_out_before(sample):
    for problem in sample["training"]:
        known = set(re.findall(r"\d+", problem.prompt))
        for left, _, right, result in EQUATION.findall(problem.answer):
            assert {left, right} <= known, problem
            known.add(result)


def test_the_problem_has_to_be_read(sample):
    """No rule that skips the text does well: neither the largest number nor all numbers added up."""
    numbers = [[int(n) for n in re.findall(r"\d+", p.prompt)] for p in sample["evaluation"]]
    results = [p.result for p in sample["evaluation"]]
    for shortcut in (max, min, sum, lambda ns: ns[0], lambda ns: ns[-1]):
        hits = sum(shortcut(ns) == result for ns, result in zip(numbers, results, strict=True))
        assert hits < 0.2 * len(results)


def test_all_operations_and_lengths_occur(sample):
    answers = [p.answer for p in sample["training"]]
    assert {sign for answer in answers for _, sign, _, _ in EQUATION.findall(answer)} == set("+-*/")
    assert {answer.count("\n") for answer in answers} == {2, 3, 4}


def test_streams_are_disjoint_whatever_the_seed(sample):
    for split in SPLITS:
        assert {split_of(p.prompt) for p in sample[split]} == {split}
        assert {split_of(p.prompt) for p in islice(problems(split, seed=99), 100)} == {split}


def test_a_stream_never_repeats_itself(sample):
    for split in SPLITS:
        assert len({p.prompt for p in sample[split]}) == len(sample[split])


def test_the_same_seed_gives_the_same_problems_and_another_seed_others(task):
    assert task.evaluation(20, seed=5) == task.evaluation(20, seed=5)
    assert task.evaluation(10, seed=5) == task.evaluation(20, seed=5)[:10]
    assert not {i.prompt for i in task.evaluation(50, seed=5)} & {
        i.prompt for i in task.evaluation(50, seed=6)
    }


def test_problems_do_not_depend_on_the_process():
    code = (
        "import hashlib; from eval.tasks.arithmetic import ArithmeticTask as T;"
        "print(hashlib.sha256(repr((T().evaluation(50, 0), T().distractors(50, 0))).encode()).hexdigest())"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "123"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    task = ArithmeticTask()
    here = repr((task.evaluation(50, 0), task.distractors(50, 0)))
    assert output == hashlib.sha256(here.encode()).hexdigest()


def test_the_generator_is_the_one_that_math_mini_was_trained_with():
    """Once the sentences or the dice change, the shipped model's card describes other data: retrain it."""
    text = "".join(p.prompt + p.answer for p in islice(problems("training", 0), 1_500))
    assert hashlib.sha256(text.encode()).hexdigest().startswith("f4f7b74d42d7dc70")


@pytest.mark.parametrize("unit", ["\n", " ", "\r\n", "####\n", "#### 1,", "#### 1 "])
def test_no_loop_keeps_the_event_loop_busy(task, unit):
    """The square of this length is hours."""
    loop = unit * 400_000
    assert not task.answered(f"{loop}x")
    assert task.answered(f"{loop}\n#### 1")


def test_items_carry_unique_ids_and_the_number(task):
    items = task.calibration(30, seed=1)
    assert len({i.item_id for i in items}) == 30
    assert [int(i.reference) for i in items] == [p.result for p in islice(problems("calibration", 1), 30)]


def test_the_worked_answer_passes_and_any_other_number_fails(task, sample):
    for i, problem in zip(task.evaluation(400, seed=3), sample["evaluation"], strict=True):
        assert task.grade(i, problem.answer)
        assert not task.grade(i, f"#### {problem.result + 1}")


@pytest.mark.parametrize(
    "answer",
    [
        "#### 42",
        "so\n#### 42\n",
        "####42",
        "  ####  42  ",
        "#### 42.0",
        "#### 7\nno, wait\n#### 42",
        "#### 042",
    ],
)
def test_grade_accepts(task, answer):
    assert task.grade(item(), answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "42",
        "The answer is 42.",
        "#### 41",
        "#### 42\n#### 41",
        "#### -42",
        "#### 420",
        "#### forty-two",
        "####",
    ],
)
def test_grade_rejects(task, answer):
    assert not task.grade(item(), answer)


def test_grade_reads_thousands_separators(task):
    assert task.grade(item("1234"), "#### 1,234")


def test_distractors_are_no_problems(task):
    prompts = task.distractors(100, seed=0)
    assert len(prompts) == 100
    assert not any("How many" in prompt for prompt in prompts)
