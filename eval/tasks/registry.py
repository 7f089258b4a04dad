"""Every task by its name: what it needs, how it is opened, and a line about it for `secateur tasks`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eval.sandbox.sandbox import Sandbox, SandboxError, open_sandbox
from eval.task import CalibrationSource, Task, TaskError
from eval.tasks import code, gsm8k, humaneval, jsonl, mbpp
from eval.tasks.arithmetic import ArithmeticTask
from eval.tasks.gsm8k import Gsm8kTask, gsm8k_items
from eval.tasks.humaneval import HumanEvalTask, humaneval_items
from eval.tasks.item_bank import ItemBank, ItemSplit
from eval.tasks.jsonl import JsonlTask, Match, jsonl_items, jsonl_prompts
from eval.tasks.mbpp import MbppTask, mbpp_items


@dataclass(frozen=True)
class TaskOptions:
    """What a task may need beside its name.

    Attributes:
        path: JSON lines file with the task's problems; humaneval's calibration problems.
        distractors_path: JSON lines file with foreign prompts; None: made-up stories, for built-in tasks.
        prompt_field: of your own file, holds the prompt.
        answer_field: of your own file, holds the expected answer; None: there is none, nothing is graded.
        match: how an answer is held to the expected one, for your own file.
        accept_unsandboxed_code: run model-written code even where no sandbox can be had.
    """

    path: Path | None = None
    distractors_path: Path | None = None
    prompt_field: str = "prompt"
    answer_field: str | None = None
    match: Match = "exact"
    accept_unsandboxed_code: bool = False


@dataclass(frozen=True)
class TaskKind:
    """A built-in task: three texts for people, and two ways to open it."""

    items: str
    grading: str
    needs: str
    open_calibration: Callable[[TaskOptions], CalibrationSource]
    open_task: Callable[[TaskOptions], Task]


OWN_TASK = "(any other name)"


def open_task(name: str, options: TaskOptions) -> Task:
    """The task of that name, ready to grade; any other name is a task of your own, its file in `options`.

    Raises:
        TaskError: it is unknown, or something that it needs is missing.
    """
    return _kind(name, options).open_task(options)


def open_calibration(name: str, options: TaskOptions) -> CalibrationSource:
    """As `open_task`, but only to calibrate on: needs neither a sandbox nor expected answers."""
    return _kind(name, options).open_calibration(options)


def task_table() -> list[tuple[str, TaskKind]]:
    """Name and kind of every task, the last line for tasks of one's own."""
    return [*TASKS.items(), (OWN_TASK, _own_kind("own"))]


def _kind(name: str, options: TaskOptions) -> TaskKind:
    if name in TASKS:
        return TASKS[name]
    if options.path is None:
        raise TaskError(
            f"there is no built-in task {name!r}, only {', '.join(TASKS)}: a task of your own wants its "
            f"file of prompts, and to be measured on also foreign ones: `secateur profile --task {name} "
            "--prompts FILE --distractors FILE`"
        )
    return _own_kind(name)


def _own_kind(name: str) -> TaskKind:
    return TaskKind(
        items="half of the file's lines",
        grading="--match exact, contains, numeric or regex",
        needs="--prompts FILE, --answer-field; to profile --distractors FILE",
        open_calibration=lambda options: _own_calibration(name, options),
        open_task=lambda options: _own_task(name, options),
    )


def _own_calibration(name: str, options: TaskOptions) -> CalibrationSource:
    items = jsonl_prompts(name, _own_path(options), options.prompt_field)
    return _OwnItems(name, jsonl.MAX_NEW_TOKENS, items, options.distractors_path)


class _OwnItems(ItemBank):
    """Only who made the task knows what is foreign to it."""

    def distractors(self, count: int, seed: int) -> list[str]:
        if self._distractors_path is None:
            raise TaskError(
                f"the task {self.name} wants --distractors, a JSON lines file of prompts foreign to it"
            )
        return super().distractors(count, seed)


def _own_task(name: str, options: TaskOptions) -> Task:
    if options.answer_field is None:
        raise TaskError(
            f"the task {name} has no expected answers, so nothing can be graded: name the field of "
            f"{options.path} that holds them with --answer-field"
        )
    items = jsonl_items(name, _own_path(options), options.prompt_field, options.answer_field, options.match)
    return JsonlTask(name, items, options.distractors_path, options.match)


def _own_path(options: TaskOptions) -> Path:
    assert options.path is not None, "_kind refuses a task of one's own without a file"
    return options.path


def _calibrating(
    name: str, max_new_tokens: int, items: Callable[[Path | None], ItemSplit]
) -> Callable[[TaskOptions], CalibrationSource]:
    return lambda options: ItemBank(name, max_new_tokens, items(options.path), options.distractors_path)


def _sandbox(options: TaskOptions) -> Sandbox:
    try:
        return open_sandbox(accept_unsandboxed=options.accept_unsandboxed_code)
    except SandboxError as error:
        raise TaskError(str(error)) from error


TASKS: dict[str, TaskKind] = {
    ArithmeticTask.name: TaskKind(
        items="endless, generated",
        grading="by the last line `#### N`",
        needs="nothing",
        open_calibration=lambda _: ArithmeticTask(),
        open_task=lambda _: ArithmeticTask(),
    ),
    gsm8k.NAME: TaskKind(
        items="half of the file's problems",
        grading="by the number of the last `#### N` or \\boxed{N}, read by math-verify",
        needs="secateur[eval]; --prompts FILE of `question` and `answer`, or datasets and the hub",
        open_calibration=_calibrating(gsm8k.NAME, gsm8k.MAX_NEW_TOKENS, gsm8k_items),
        open_task=lambda options: Gsm8kTask(gsm8k_items(options.path), options.distractors_path),
    ),
    humaneval.NAME: TaskKind(
        items="164",
        grading="by its tests, in the sandbox",
        needs="secateur[eval] and a sandbox; to profile --prompts FILE of MBPP's tasks",
        open_calibration=_calibrating(humaneval.NAME, code.MAX_NEW_TOKENS, humaneval_items),
        open_task=lambda options: HumanEvalTask(
            humaneval_items(options.path), options.distractors_path, _sandbox(options)
        ),
    ),
    mbpp.NAME: TaskKind(
        items="half of the file's tasks",
        grading="by its tests, in the sandbox",
        needs="a sandbox; --prompts FILE of `text` and `test_list`",
        open_calibration=_calibrating(mbpp.NAME, code.MAX_NEW_TOKENS, mbpp_items),
        open_task=lambda options: MbppTask(
            mbpp_items(options.path), options.distractors_path, _sandbox(options)
        ),
    ),
}
