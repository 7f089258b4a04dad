"""The composition root of `secateur recover`: settings in, a delta for each variant and a report on disk."""

import json
import logging
import shutil
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch

from eval.provenance import provenance
from eval.tasks.registry import open_calibration
from pruning.errors import DeltaError
from pruning.files import write_atomically
from pruning.ranking.widths import widths_at
from pruning.recovery.network import AdapterSettings
from pruning.recovery.processes import Processes, joined
from pruning.recovery.recovery import (
    PROGRESS_FILE,
    Recovery,
    RecoveryData,
    RecoverySettings,
    RecoveryVariant,
    recover,
)
from pruning.recovery.training import TrainingSettings
from server.loading.deltas import load_apart
from server.loading.dense_answers import dense_answers
from server.loading.devices import resolve_device, resolve_dtype
from server.loading.profiles import cache_directory, memory_bound, open_model
from server.loading.rankings import ranked
from server.settings import RecoverSettings, SettingsError

logger = logging.getLogger(__name__)

SECONDS_AN_HOUR = 3600


def recover_variants(settings: RecoverSettings) -> str | None:
    """What `secateur recover` does, alone or as one of several processes: deltas, and a report beside them.

    Returns:
        For people: how large each delta is and what it gained. None but in the first process.

    Raises:
        SecateurError: settings, model, profile, memory, devices or disk do not allow it.
    """
    with joined(resolve_device(settings.device)) as processes:
        outs, found = _recover(settings, processes)
        return _summary(outs, found) if processes.is_first else None


def _recover(settings: RecoverSettings, processes: Processes) -> tuple[list[Path], Recovery]:
    outs = delta_files(settings.out, settings.variants)
    work = settings.out.with_name(f"{settings.out.name}.work")
    there = [str(out) for out in outs if out.exists()]
    if there and not (work / PROGRESS_FILE).exists():  # else it was interrupted while they were written
        raise DeltaError(f"{', '.join(there)} is there already; choose another --out, or remove it")
    how = _recovery_settings(settings, processes)
    cache_dir = cache_directory(settings)
    with processes.first_ahead():  # what it downloads or measures is kept on disk, for the others as well
        source = open_calibration(settings.task, settings.task_options())
        prompts = [item.prompt for item in source.calibration(settings.num_prompts, settings.seed)]
        checkpoint = open_model(settings)
        known = ranked(settings, checkpoint)
        answers = dense_answers(
            checkpoint,
            prompts,
            source.max_new_tokens,
            device=processes.device,
            dtype=how.dtype,
            cache_dir=cache_dir,
            max_memory_bytes=how.max_memory_bytes,
        )
    found = recover(
        checkpoint,
        known.ranking,
        [
            RecoveryVariant(sparsity, widths_at(known.ranking, sparsity, known.allocation))
            for sparsity in settings.variants
        ],
        RecoveryData(settings.task, tuple(prompts), answers, settings.top_tokens, cache_dir / "recovery"),
        how,
        work,
        processes,
        starts=sorted(
            (load_apart(path, settings.task) for path in settings.init),
            key=lambda delta: delta.provenance.sparsity,
        ),
        progress=processes.is_first,
    )
    if processes.is_first:
        for out, delta in zip(outs, found.deltas, strict=True):
            delta.save(out)
        _write_report(found, outs, report_file(settings.out))
        shutil.rmtree(work)
    return outs, found


def delta_files(out: Path, sparsities: tuple[float, ...]) -> list[Path]:
    """`out` of a single variant; of several one each, named after `out` and the sparsity in per cent."""
    if len(sparsities) == 1:
        return [out]
    return [out.with_name(f"{out.stem}-s{100 * sparsity:g}{out.suffix}") for sparsity in sparsities]


def report_file(out: Path) -> Path:
    """Where the report of deltas in `out` lies."""
    return out.with_suffix(".report.json")


def _summary(outs: list[Path], found: Recovery) -> str:
    tokens = f"{found.facts['held_out_tokens']:,} held-out answer tokens"
    lines = [
        f"{out}\n  {2 * delta.parameters:,} bytes in bfloat16\n"
        f"  KL to the dense model on {tokens}, nats a token: {before:.5f} without, {after:.5f} with"
        for out, delta, before, after in zip(
            outs, found.deltas, found.before.divergence, found.after.divergence, strict=True
        )
    ]
    progress = found.progress
    best = progress.held_out[progress.best].step
    lines.append(
        f"{len(progress.steps)} of {found.planned_steps} steps in "
        f"{timedelta(seconds=round(progress.seconds))}; the best after {best}"
    )
    return "\n".join(lines)


def _recovery_settings(settings: RecoverSettings, processes: Processes) -> RecoverySettings:
    if settings.dtype == "float16":
        raise SettingsError(
            "a training's gradients are too small for float16, which knows nothing below 6e-8: --dtype "
            "bfloat16, or float32 where bfloat16 is slow"
        )
    max_memory_bytes = memory_bound(settings.max_memory, processes.device)
    if settings.max_memory is None:  # it is what is free
        max_memory_bytes //= processes.on_device
    return RecoverySettings(
        adapter=AdapterSettings(rank=settings.rank, alpha=settings.alpha, seed=settings.seed),
        training=TrainingSettings(
            learning_rate=settings.learning_rate,
            schedule=settings.schedule,
            warmup=settings.warmup,
            epochs=settings.epochs,
            batch_tokens=settings.batch_tokens,
            row_tokens=_row_tokens(settings, processes),
            ce_weight=settings.ce_weight,
            evaluations=settings.evaluations,
            patience=settings.patience,
            seed=settings.seed,
            save_seconds=settings.save_seconds,
        ),
        dtype=getattr(torch, resolve_dtype(settings.dtype, "bfloat16")),
        recompute=None if settings.recompute == "auto" else settings.recompute == "on",
        max_memory_bytes=max_memory_bytes,
    )


def _row_tokens(settings: RecoverSettings, processes: Processes) -> int:
    """So many that a step has a row for each process."""
    share = max(1, settings.batch_tokens // processes.count)
    if processes.is_first and processes.count > 1 and share < settings.row_tokens:
        logger.info(
            "rows have %d tokens in place of --row-tokens %d: a step has one for each of %d processes",
            *(share, settings.row_tokens, processes.count),
        )
    return min(settings.row_tokens, share)


def _write_report(found: Recovery, outs: list[Path], file: Path) -> None:
    """Settings, digests, hours and curves. Raises DeltaError where it cannot be written."""
    progress = found.progress
    record = {
        **found.facts,
        "planned_steps": found.planned_steps,
        "best_step": progress.held_out[progress.best].step,
        "hours": progress.seconds / SECONDS_AN_HOUR,
        "deltas": [
            {
                "file": out.name,
                "digest": delta.digest,
                "sparsity": delta.provenance.sparsity,
                "parameters": delta.parameters,
                "bytes": 2 * delta.parameters,
                "held_out_kl_nats": {
                    "before": found.before.divergence[place],
                    "after": found.after.divergence[place],
                },
                "held_out_cross_entropy_nats": {
                    "before": found.before.cross_entropy[place],
                    "after": found.after.cross_entropy[place],
                },
            }
            for place, (out, delta) in enumerate(zip(outs, found.deltas, strict=True))
        ],
        "steps_taken": [asdict(step) for step in progress.steps],
        "held_out": [asdict(measured) for measured in progress.held_out],
        "provenance": asdict(provenance()),
    }
    try:
        write_atomically(file, (json.dumps(record, indent=1) + "\n").encode())
    except OSError as error:
        raise DeltaError(f"cannot write the report {file} ({error}); make room and run it again") from error
