"""Finds the profile that a model is served with, or has it measured.

Knows where profiles lie and when one may be used; measures nothing itself: that is pruning/calibration/.
"""

import gc
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from eval.task import CalibrationSource
from eval.tasks.registry import open_calibration
from pruning.calibration.answers import Answers
from pruning.calibration.calibration import CalibrationData, build_profile
from pruning.calibration.profile import SelectivityProfile, load
from pruning.checkpoints.checkpoint import Checkpoint, default_cache_dir, open_checkpoint
from server.loading.dense_answers import dense_answers
from server.loading.devices import cpu_multiplies_bfloat16, resolve_device, resolve_dtype
from server.monitoring.memory import device_memory
from server.settings import (
    DEFAULT_NUM_PROMPTS,
    DEFAULT_SEED,
    CommonSettings,
    ProfiledSettings,
    ProfileSettings,
)

logger = logging.getLogger(__name__)

FLOAT32_PARAMETERS = 100_000_000  # a model of so many is measured in minutes either way
EMBEDDED_MODELS = Path(__file__).parents[1] / "embedded"


def cache_directory(settings: CommonSettings) -> Path:
    """Where what was measured is kept."""
    return settings.cache_dir or default_cache_dir()


def open_model(settings: CommonSettings) -> Checkpoint:
    """The checkpoint that `settings` names; an embedded model wins over a path. Raises ModelError."""
    embedded = EMBEDDED_MODELS / settings.model
    model = str(embedded) if (embedded / "config.json").is_file() else settings.model
    return open_checkpoint(model, cache_directory(settings))


def profile_for_serving(settings: ProfiledSettings, checkpoint: Checkpoint) -> SelectivityProfile:
    """The named profile, else the cached one, else one measured now and cached.

    Raises:
        StaleProfileError: it was measured on another model or tokenizer.
        ProfileError: it cannot be read or measured.
        TaskError: there is none, and the task's prompts are unknown.
    """
    path = settings.profile or cached_path(settings, checkpoint)
    if settings.profile is None and not path.exists():
        logger.info("there is no profile of %s for %s yet; measuring one", checkpoint.name, settings.task)
        data = calibration_data(
            open_calibration(settings.task, settings.task_options()), DEFAULT_NUM_PROMPTS, DEFAULT_SEED
        )
        profile = _measure(settings, checkpoint, data)
        profile.save(path)
        return profile
    profile = load(path)
    profile.check(
        model=checkpoint.fingerprint,
        tokenizer=checkpoint.tokenizer_fingerprint,
        ends=checkpoint.eos_token_ids,
        source=settings.model,
    )
    logger.info("using the profile %s of task %s", path, profile.provenance.task)
    return profile


def measure_profile(settings: ProfileSettings) -> tuple[Path, SelectivityProfile]:
    """What `secateur profile` does: the file, and what is in it. One that is up to date is kept.

    Raises:
        StaleProfileError: there is one of something else, and `force` is not set.
        SettingsError, TaskError, ModelError, ProfileError: it cannot be measured.
    """
    source = open_calibration(settings.task, settings.task_options())
    checkpoint = open_model(settings)
    path = settings.out or cached_path(settings, checkpoint)
    data = calibration_data(source, settings.num_prompts, settings.seed)
    if path.exists() and not settings.force:
        profile = load(path)
        profile.check(
            model=checkpoint.fingerprint,
            tokenizer=checkpoint.tokenizer_fingerprint,
            data=data.fingerprint,
            ends=checkpoint.eos_token_ids,
            dtype=None if settings.dtype == "auto" else settings.dtype,
            source=settings.model,
        )
        logger.info("%s is up to date; --force measures again", path)
        return path, profile
    profile = _measure(settings, checkpoint, data, settings.max_memory)
    profile.save(path)
    return path, profile


def profile_summary(path: Path, profile: SelectivityProfile) -> str:
    """For people: where it is, and of what."""
    return f"{path}\n  {profile.provenance.model_name}, {profile.provenance.task}, {profile.digest}"


def calibration_data(
    source: CalibrationSource, num_prompts: int, seed: int, *, with_distractors: bool = True
) -> CalibrationData:
    """`num_prompts` prompts of the task and, if wanted, as many foreign ones."""
    return CalibrationData(
        target=tuple(item.prompt for item in source.calibration(num_prompts, seed)),
        distractor=tuple(source.distractors(num_prompts, seed)) if with_distractors else (),
        seed=seed,
        max_new_tokens=source.max_new_tokens,
    )


def measured_answers(
    settings: CommonSettings,
    checkpoint: Checkpoint,
    prompts: Sequence[str],
    max_new_tokens: int,
    max_memory_bytes: int | None = None,
) -> Answers:
    """The dense model's own, in the dtype that it is measured in.

    Raises:
        ModelError, ProfileError, MemoryBoundError: as `dense_answers`.
    """
    device, dtype = measuring_on(settings, checkpoint)
    return dense_answers(
        checkpoint,
        prompts,
        max_new_tokens,
        device=device,
        dtype=dtype,
        cache_dir=cache_directory(settings),
        max_memory_bytes=max_memory_bytes,
    )


def cached_path(settings: CommonSettings, checkpoint: Checkpoint) -> Path:
    """Where the profile of this model and task lies.

    By the model's place, not its content: a model that has changed finds its old profile and refuses it.
    An embedded model changes only with the program, and nobody should have to do anything about that.
    """
    key = hashlib.sha256(str(checkpoint.path.resolve()).encode()).hexdigest()
    if checkpoint.path.parent == EMBEDDED_MODELS:
        key = checkpoint.fingerprint
    name = f"{checkpoint.name}-{settings.task}-{key[:8]}.safetensors"
    return cache_directory(settings) / "profiles" / name


def measuring_on(settings: CommonSettings, checkpoint: Checkpoint) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of a model that is measured.

    Squared gradients want float32 where it costs little: with a small model, or a CPU that is no faster in
    bfloat16.
    """
    device = resolve_device(settings.device)
    is_small = checkpoint.num_parameters <= FLOAT32_PARAMETERS
    costs_little = device.type == "cpu" and (is_small or not cpu_multiplies_bfloat16())
    return device, getattr(torch, resolve_dtype(settings.dtype, "float32" if costs_little else "bfloat16"))


def memory_bound(max_memory: float | None, device: torch.device) -> int:
    """Bytes that measuring may take: `max_memory` GiB, else what is free now."""
    if max_memory is not None:
        return int(max_memory * 2**30)
    return device_memory(device).free


def _measure(
    settings: CommonSettings, checkpoint: Checkpoint, data: CalibrationData, max_memory: float | None = None
) -> SelectivityProfile:
    device, dtype = measuring_on(settings, checkpoint)
    bound = memory_bound(max_memory, device)
    profile = build_profile(
        checkpoint,
        settings.task,
        data,
        measured_answers(settings, checkpoint, data.target, data.max_new_tokens, bound),
        device=device,
        dtype=dtype,
        progress=True,
        max_memory_bytes=bound,
    )
    gc.collect()  # the network holds on to itself, and what is there when `serve` begins to serve stays
    return profile
