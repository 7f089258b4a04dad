"""The composition root of `secateur compensate`: settings in, a delta of one variant on disk."""

import shutil
from pathlib import Path

from eval.tasks.registry import open_calibration
from pruning.compensation.compensation import CompensationSettings, compensate
from pruning.compensation.unfinished import LAYERS_FILE
from pruning.delta import Delta
from pruning.errors import DeltaError
from pruning.ranking.widths import widths_at
from server.loading.profiles import (
    calibration_data,
    measured_answers,
    measuring_on,
    memory_bound,
    open_model,
)
from server.loading.rankings import ranked
from server.settings import CompensateSettings


def fit_delta(settings: CompensateSettings) -> tuple[Path, Delta]:
    """What `secateur compensate` does: the file written, and what is in it.

    Raises:
        SecateurError: the settings, the model, the profile, the memory or the disk do not allow it.
    """
    out = settings.out
    work = out.with_name(f"{out.name}.work")
    if out.exists() and not (work / LAYERS_FILE).exists():  # else it ended before it had tidied up
        raise DeltaError(f"{out} is there already; choose another --out, or remove it")
    source = open_calibration(settings.task, settings.task_options())
    checkpoint = open_model(settings)
    known = ranked(settings, checkpoint)
    data = calibration_data(source, settings.num_prompts, settings.seed, with_distractors=False)
    device, dtype = measuring_on(settings, checkpoint)
    bound = memory_bound(settings.max_memory, device)
    delta = compensate(
        checkpoint,
        known.ranking,
        widths_at(known.ranking, settings.sparsity, known.allocation),
        settings.sparsity,
        settings.task,
        data,
        measured_answers(settings, checkpoint, data.target, data.max_new_tokens, bound),
        CompensationSettings(settings.rank, str(device), dtype, bound),
        work,
        progress=True,
    )
    delta.save(out)
    shutil.rmtree(work)
    return out, delta


def delta_summary(out: Path, delta: Delta) -> str:
    """For people: how large it is and what it gained."""
    found = delta.provenance.settings
    before, after = float(found["kl_nats_before"]), float(found["kl_nats_after"])
    return (
        f"{out}\n  {2 * delta.parameters:,} bytes in bfloat16, fitted on {found['tokens']:,} tokens\n"
        f"  KL to the dense model on {found['reported_tokens']:,} held-out answer tokens, nats a token: "
        f"{before:.5f} without, {after:.5f} with"
    )
