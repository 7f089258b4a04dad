"""What the code tasks share: finding the code in a chat answer, and running it with its tests.

Knows no benchmark; where code runs is eval/sandbox's.
"""

import ast
import re
from textwrap import dedent

from eval.sandbox.sandbox import Sandbox, SandboxError
from eval.task import TaskError

MAX_NEW_TOKENS = 512
TEST_SECONDS = 5.0  # of CPU time, for an answer and all of its tests

# A fence that never closes reaches to the end: an answer that ran on may still hold a whole function.
FENCED = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
CLOSED_FENCE = re.compile(r"^[ \t]*```[^\n]*\n.*?^[ \t]*```", re.MULTILINE | re.DOTALL)


def answer_code(answer: str, defines: str = "") -> str:
    """The code of a chat answer: the first fenced block that defines `defines`, any function if empty.

    Failing that the first block; without any block the whole text.
    """
    blocks = [dedent(block) for block in FENCED.findall(answer)] or [answer]
    return next((block for block in blocks if has_definition(block, defines)), blocks[0])


def has_definition(code: str, name: str = "") -> bool:
    """Whether some line begins to define `name`, or anything if it is empty."""
    named = rf"{re.escape(name)}\b" if name else ""
    return re.search(rf"^(async )?(def|class) {named}", code, re.MULTILINE) is not None


def code_answered(answer: str) -> bool:
    """Whether there is a closed fenced block, or the text is Python that defines something."""
    if CLOSED_FENCE.search(answer):
        return True
    if FENCED.search(answer) or not has_definition(answer):
        return False
    try:
        ast.parse(answer)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def passes(sandbox: Sandbox, program: str) -> bool:
    """Whether `program`, an answer and its tests, runs to its end without an exception.

    Raises:
        TaskError: the sandbox could not start, so nothing is known of the answer.
    """
    try:
        return sandbox.run(program, timeout_seconds=TEST_SECONDS).passed
    except SandboxError as error:
        raise TaskError(str(error)) from error
