"""The composition root of `secateur rank`: settings in, a ranking on disk that goes on where it was."""

import logging
from pathlib import Path

from eval.tasks.registry import open_calibration
from pruning.calibration.calibration import start_calibration
from pruning.ranking.ranking_file import SavedRanking
from pruning.ranking.scores import SCORES
from pruning.ranking.stepwise import Steps, StepsSoFar, load_steps, rank_in_steps, steps_key
from server.loading.profiles import (
    calibration_data,
    measured_answers,
    measuring_on,
    memory_bound,
    open_model,
)
from server.loading.rankings import allocation_of
from server.settings import RankSettings, SettingsError

logger = logging.getLogger(__name__)


def make_ranking(settings: RankSettings) -> SavedRanking:
    """What `secateur rank` does: measures, takes neurons away, measures again, and writes the order.

    What was measured is kept beside the file until the order is complete.

    Raises:
        SettingsError: the file is there already, and `force` is not set.
        SecateurError: the settings, the task, the model or the disk do not allow it.
    """
    if settings.out.exists() and not settings.force:
        raise SettingsError(f"{settings.out} exists: name another --out, or replace it with --force")
    score = SCORES[settings.score]
    steps = Steps(
        settings.step,
        settings.max_sparsity,
        allocation_of(settings.score, settings.allocation),
        settings.reweigh,
    )
    source = open_calibration(settings.task, settings.task_options())
    checkpoint = open_model(settings)
    data = calibration_data(
        source, settings.num_prompts, settings.seed, with_distractors=score.uses_distractors
    )
    device, dtype = measuring_on(settings, checkpoint)
    bound = memory_bound(settings.max_memory, device)
    answers = measured_answers(settings, checkpoint, data.target, data.max_new_tokens, bound)
    key = steps_key(
        *(checkpoint.fingerprint, checkpoint.tokenizer_fingerprint, data.fingerprint, answers.digest),
        *(score.name, steps, dtype),
    )
    partial = settings.out.with_name(f"{settings.out.name}.steps")
    if settings.force:
        partial.unlink(missing_ok=True)
    start = load_steps(partial, key)
    if start is not None:
        logger.info("going on after %d of %d steps", start.done, len(steps.measured_at))
    calibration = start_calibration(
        checkpoint,
        settings.task,
        data,
        answers,
        device=device,
        dtype=dtype,
        max_memory_bytes=bound,
    )
    saved = rank_in_steps(
        calibration, score, steps, start=start, on_step=lambda done: _keep(done, partial, key), progress=True
    )
    saved.save(settings.out)
    partial.unlink()
    return saved


def ranking_summary(path: Path, saved: SavedRanking) -> str:
    """For people: where it is, and of what."""
    return f"{path}\n  {saved.ranking.score}, {saved.provenance.task}, {saved.ranking.digest}"


def _keep(so_far: StepsSoFar, path: Path, key: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    so_far.save(path, key)
