"""Loads a model for whatever asks the engine: `serve`, evaluations and studies. No HTTP.

Knows which limits suit the machine and which neurons a set of sizes needs; reading them is the engine's.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch

from pruning.checkpoints.checkpoint import Checkpoint
from pruning.delta import Delta
from pruning.ranking.ranking import Ranking
from pruning.ranking.widths import Allocation, exact_sparsity, widths_at
from server.engine.config import EngineConfig
from server.engine.engine import Engine, load_engine
from server.engine.errors import EngineConfigError
from server.loading.devices import resolve_device, resolve_dtype
from server.monitoring.memory import device_memory
from server.settings import EvalSettings, ServeSettings, StudySettings
from server.variants import VariantBuilder

DEFAULT_MAX_MODEL_LEN = 4096


class DeviceDefaults(NamedTuple):
    """Limits that suit a kind of device. A prompt's chunk delays every running request's next token."""

    kv_cache_gib: float
    max_num_seqs: int
    max_num_batched_tokens: int


DEFAULTS = {
    "cpu": DeviceDefaults(1.0, 64, 512),  # of more tokens at once a CPU computes no more a second
    "cuda": DeviceDefaults(4.0, 256, 4096),  # an H200 takes a prompt of 3,500 tokens in 18 ms
}


def engine_config(
    settings: ServeSettings | EvalSettings | StudySettings, checkpoint: Checkpoint
) -> EngineConfig:
    """The engine's limits: what is set, else what suits the model and the machine."""
    device = resolve_device(settings.device)
    defaults = DEFAULTS[device.type]
    fits = min(checkpoint.config.max_position_embeddings, DEFAULT_MAX_MODEL_LEN)
    return EngineConfig(
        device=str(device),
        dtype=resolve_dtype(settings.dtype, "bfloat16"),
        block_size=settings.block_size,
        kv_cache_bytes=int((settings.kv_cache_gib or defaults.kv_cache_gib) * 2**30),
        max_model_len=fits if settings.max_model_len is None else settings.max_model_len,
        max_num_seqs=max_num_seqs(settings),
        max_num_batched_tokens=settings.max_num_batched_tokens or defaults.max_num_batched_tokens,
        max_waiting=settings.max_waiting,
        prompt_lookup_tokens=settings.prompt_lookup_tokens,
        enable_prefix_caching=settings.prefix_caching,
        kernels=settings.kernels,
        quantization=settings.quantization,
    )


def max_num_seqs(settings: ServeSettings | EvalSettings | StudySettings) -> int:
    """Requests that run at once: as many as is set, else what suits the device."""
    return settings.max_num_seqs or DEFAULTS[resolve_device(settings.device).type].max_num_seqs


def load_sizes(
    checkpoint: Checkpoint,
    ranking: Ranking,
    allocation: Allocation,
    sparsities: Sequence[float],
    config: EngineConfig,
    *,
    deltas: Sequence[Delta] = (),
    progress: bool = False,
) -> tuple[Engine, VariantBuilder]:
    """Reads the neurons that the widest size keeps, of `sparsities` and of those that deltas correct.

    Raises:
        ModelError, EngineConfigError: the checkpoint is damaged, or too much was asked of it, or of memory.
        ForeignDeltaError: a delta is of another model, ranking or width.
    """
    sizes = partial(widths_at, ranking, allocation=allocation)
    widths = [sizes(sparsity) for sparsity in sparsities]
    for delta in deltas:
        corrected = sizes(delta.provenance.sparsity)
        delta.check(model=checkpoint.fingerprint, ranking=ranking.digest, widths=corrected)
        widths.append(corrected)
    resident = tuple(max(layer) for layer in zip(*widths, strict=True))
    engine = load_engine(checkpoint, ranking, resident, config, progress=progress)
    if config.device == "cpu" and not engine.kernels.startswith("torch"):
        _check_room(config)
    builder = VariantBuilder(
        checkpoint.name,
        sizes,
        partial(exact_sparsity, intermediate_size=checkpoint.architecture.intermediate_size),
        engine,
        fingerprint=checkpoint.fingerprint,
        ranking=ranking.digest,
    )
    return engine, builder


def _check_room(config: EngineConfig) -> None:
    """Our kernels' cache becomes resident as it is written: too large a one ends the process only then."""
    free = device_memory(torch.device("cpu")).free
    if config.kv_cache_bytes > free:
        raise EngineConfigError(
            f"the KV cache may come to take {config.kv_cache_bytes / 2**30:.2f} GiB, and beside the weights "
            f"{free / 2**30:.2f} GiB are free: lower --kv-cache-gib, or free memory"
        )
