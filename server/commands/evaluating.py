"""The composition root of `secateur eval` and `secateur study`: settings in, figures and files out."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from eval.endpoint import Endpoint, ServedSubject, open_endpoint
from eval.evaluation import Evaluation, answer_items, summary
from eval.evaluation import save as save_evaluation
from eval.generate import Generate
from eval.provenance import provenance
from eval.study.journal import Journal, open_journal
from eval.study.report import threshold_sentence, write_report
from eval.study.results import StudyResults, StudyRun, score, summarise
from eval.study.results import save as save_results
from eval.study.study import Cell, Study
from eval.subject import Strategy, Subject, VariantFacts
from eval.task import Task, TaskItem
from eval.tasks.registry import open_task
from pruning.errors import SecateurError
from server.cli import command_line
from server.judging.subjects import LocalStudy, local_study, local_variant
from server.loading.profiles import cache_directory
from server.loading.safety import SafeSparsity, SafetyFile
from server.loading.sizes import max_num_seqs
from server.settings import EvalSettings, SettingsError, StudySettings

ENDLESS_ITEMS = 500
JOURNAL, RESULTS = "answers.jsonl", "results.json"
GRADES_AT_ONCE = os.cpu_count() or 1
SERVED = Strategy("as served", "unknown", "forward")


class OutputError(SecateurError):
    """A result cannot be written."""


class NotYetError(SecateurError):
    """An interrupted study has too little to tell."""


def evaluate(settings: EvalSettings) -> Evaluation:
    """What `secateur eval` does: answers, grades, and the file that --out names.

    Raises:
        SecateurError: the settings, the task, the model or the server do not allow it.
    """
    task = open_task(settings.task, settings.task_options())
    if settings.out is not None:
        _check_writable(settings.out)
    evaluation = asyncio.run(_evaluate(settings, task, _items(settings, task)))
    if settings.out is not None:
        try:
            save_evaluation(evaluation, settings.out)
        except OSError as error:
            raise OutputError(
                f"cannot write {settings.out} ({error}); this was found:\n{summary(evaluation)}"
            ) from error
    return evaluation


def study(settings: StudySettings) -> str:
    """What `secateur study` does: runs or completes it, writes the report, and keeps the safe sparsity.

    Returns what came of it, for a terminal.

    Raises:
        SecateurError: the settings, the task, the model or the server do not allow it.
    """
    task = open_task(settings.task, settings.task_options())
    items = _items(settings, task)
    directory = settings.out or Path("studies") / f"{Path(settings.model).name}-{settings.task}"
    local = None if _is_url(settings.model) else local_study(settings, task, items)
    with open_journal(directory / JOURNAL) as journal:
        results = asyncio.run(_study(settings, task, items, local, journal))
    told = [threshold_sentence(results.threshold).replace("**", "")]
    try:
        save_results(results, directory / RESULTS)
        told.append(str(write_report(results, directory)))
        if local is not None and results.threshold.could_be_shown and not settings.so_far:
            told.append(f"safe sparsity for `secateur serve`: {_keep(settings, local, results)}")
    except OSError as error:
        raise OutputError(f"cannot write what was found in {directory}: {error}") from error
    return "\n".join(told)


def _check_writable(path: Path) -> None:
    """Before hours of work: makes the directory. Raises OutputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(f"nothing can be written beside {path} ({error}): name another --out") from error


async def _evaluate(settings: EvalSettings, task: Task, items: Sequence[TaskItem]) -> Evaluation:
    async with _variant(settings, task, items) as (generate, facts, model):
        answers, seconds = await answer_items(
            generate,
            task,
            items,
            facts.name,
            at_once=max_num_seqs(settings) + GRADES_AT_ONCE,
            grades_at_once=GRADES_AT_ONCE,
            progress=True,
        )
    tally = score(list(answers.values()), confidence=0.95)
    return Evaluation(
        model=model,
        variant=facts,
        task=_task_facts(settings, task, items),
        settings={
            "sparsity": settings.sparsity,
            "stop_on_loop": settings.stop_on_loop,
            "max_num_seqs": max_num_seqs(settings),
        },
        score=tally,
        wall_seconds=seconds,
        tokens_per_second=tally.completion_tokens / seconds,
        answers=answers,
        provenance=provenance(),
    )


@asynccontextmanager
async def _variant(
    settings: EvalSettings, task: Task, items: Sequence[TaskItem]
) -> AsyncIterator[tuple[Generate, VariantFacts, dict[str, Any]]]:
    """The one to be evaluated, in this process or at a URL, and what is known of its model."""
    if _is_url(settings.model):
        if settings.delta is not None:
            raise SettingsError(
                "--delta corrects a model in this process; a server corrects its own: give it "
                "the file (deltas, or POST /admin/variants)"
            )
        async with _endpoint(settings) as endpoint:
            yield endpoint, endpoint.variant_at(settings.sparsity), {"name": settings.model}
    else:
        subject = local_variant(settings, task, items)
        async with subject.open() as model:
            known = {
                "name": subject.checkpoint.name,
                "strategy": subject.strategy.name,
                **subject.identity(settings.sparsity),
            }
            yield model, model.facts(settings.sparsity), known


async def _study(
    settings: StudySettings,
    task: Task,
    items: Sequence[TaskItem],
    local: LocalStudy | None,
    journal: Journal,
) -> StudyResults:
    study = Study(
        task,
        items,
        journal,
        {"stop_on_loop": settings.stop_on_loop},
        command=command_line("study", settings),
        at_once=max_num_seqs(settings) + GRADES_AT_ONCE,
        grades_at_once=GRADES_AT_ONCE,
        progress=True,
    )
    if local is not None:
        cells = await _cells(study, local.subjects, settings)
    else:
        async with _endpoint(settings) as endpoint:
            cells = await _cells(study, [_served(endpoint, settings)], settings)
    return summarise(
        cells,
        model={"name": settings.model} if local is None else local.model,
        task=_task_facts(settings, task, items),
        settings={
            "stop_on_loop": settings.stop_on_loop,
            "max_num_seqs": max_num_seqs(settings),
            "tolerance": settings.tolerance,
            "confidence": settings.confidence,
        },
        tolerance=settings.tolerance,
        confidence=settings.confidence,
        provenance=provenance(),
        runs=[StudyRun(run.command, run.seconds) for run in journal.runs],
    )


async def _cells(study: Study, subjects: Sequence[Subject], settings: StudySettings) -> list[Cell]:
    """All of them, or with --so-far those that are there: at the least the dense model, and one beside it."""
    if not settings.so_far:
        return await study.run(subjects)
    cells = study.complete(subjects)
    first = [cell for cell in cells if cell.strategy == subjects[0].strategy]
    if len(first) < 2 or first[0].sparsity:
        raise NotYetError(
            "nothing to report yet: there must be an answer to every item by the dense model and, at one "
            f"sparsity at least, by {subjects[0].strategy.name}; run the study on without --so-far"
        )
    return cells


def _keep(settings: StudySettings, local: LocalStudy, results: StudyResults) -> Path:
    threshold = results.threshold
    found = SafeSparsity(
        sparsity=threshold.sparsity,
        task=settings.task,
        tolerance=threshold.tolerance,
        confidence=threshold.confidence,
        items=threshold.items,
        measured_at=results.provenance.measured_at,
    )
    file = SafetyFile(
        cache_directory(settings), local.ranking.digest, local.allocation, settings.quantization
    )
    file.write(found)
    return file.path


def _served(endpoint: Endpoint, settings: StudySettings) -> ServedSubject:
    sparsities = tuple(sorted({0.0, *settings.sparsities}))
    for sparsity in sparsities:
        endpoint.variant_at(sparsity)
    if not endpoint.variants:
        raise SettingsError(f"{settings.model} is no Secateur server, and serves one size: use secateur eval")
    return ServedSubject(endpoint, settings.model, SERVED, sparsities)


def _endpoint(settings: EvalSettings | StudySettings) -> AbstractAsyncContextManager[Endpoint]:
    key = None if settings.api_key is None else settings.api_key.get_secret_value()
    return open_endpoint(
        settings.model,
        api_key=key,
        stop_on_loop=settings.stop_on_loop,
        connections=max_num_seqs(settings),
    )


def _items(settings: EvalSettings | StudySettings, task: Task) -> list[TaskItem]:
    """As many as are asked for, else all; of an endless supply a round number."""
    all_there_are = ENDLESS_ITEMS if task.num_evaluation is None else task.num_evaluation
    return task.evaluation(settings.items or all_there_are, settings.seed)


def _task_facts(
    settings: EvalSettings | StudySettings, task: Task, items: Sequence[TaskItem]
) -> dict[str, Any]:
    return {
        "name": task.name,
        "digest": task.digest[:16],
        "items": len(items),
        "seed": settings.seed,
        "max_new_tokens": task.max_new_tokens,
    }


def _is_url(model: str) -> bool:
    return model.startswith(("http://", "https://"))
