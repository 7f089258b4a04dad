"""The composition root of what serves: a model loaded, its variants on offer, the application over them.

Everything that is built is built here, in the order in which it can fail: the cheap first.
"""

import logging
import random
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from fastapi import FastAPI

from eval.probing.evidence_store import EvidenceStore
from eval.probing.guard import Compare, Guard, guard_prompts
from eval.probing.prober import Identity
from eval.probing.verdicts import Criterion
from eval.task import Task, TaskError
from eval.tasks.registry import open_task
from pruning.checkpoints.checkpoint import Checkpoint
from pruning.ranking.ranking import Ranking
from pruning.ranking.widths import Allocation
from server.app import build_app
from server.engine.async_engine import AsyncEngine
from server.engine.config import EngineConfig
from server.engine.engine import Engine
from server.engine.kernels import without_reason
from server.generation import Generations
from server.judging.guarding import EngineCompare
from server.judging.probing import EngineGenerate, ProbesOff, Probing
from server.judging.shadow import ShadowScorer
from server.loading.deltas import read_delta
from server.loading.profiles import cache_directory
from server.loading.rankings import ranked
from server.loading.safety import SafeMargin, SafetyFile
from server.loading.sizes import engine_config, load_sizes
from server.monitoring.efficiency import CostModel
from server.monitoring.gauges import StateCollector
from server.monitoring.live_source import LiveSource
from server.monitoring.metrics import Metrics
from server.monitoring.power import POWERCAP, open_energy_meter
from server.policy import VariantPolicy
from server.settings import ServeSettings, SettingsError
from server.tokenization import PromptTokenizer
from server.variants import VariantRegistry

if TYPE_CHECKING:  # what it imports need not be installed
    from server.monitoring.tracing import Tracing

logger = logging.getLogger(__name__)

CONFIDENCE = 0.95  # of verdicts and bounds


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, its neurons in order, its variants on offer."""

    checkpoint: Checkpoint
    ranking: Ranking
    margin: SafeMargin
    engine: Engine
    registry: VariantRegistry


def load_model(settings: ServeSettings, checkpoint: Checkpoint) -> LoadedModel:
    """Ranks the neurons by the model's profile and loads the variants.

    Raises:
        SecateurError: the settings, the checkpoint, its profile or ranking, or a delta does not allow it.
    """
    config = engine_config(settings, checkpoint)
    known = ranked(settings, checkpoint)
    ranking, allocation = known.ranking, known.allocation
    studied = SafetyFile(cache_directory(settings), ranking.digest, allocation, settings.quantization)
    margin = studied.margin(settings.safe_sparsity)
    _check_default(settings, margin)
    engine, registry = load_variants(settings, checkpoint, ranking, allocation, config)
    return LoadedModel(checkpoint, ranking, margin, engine, registry)


def load_variants(
    settings: ServeSettings,
    checkpoint: Checkpoint,
    ranking: Ranking,
    allocation: Allocation,
    config: EngineConfig,
) -> tuple[Engine, VariantRegistry]:
    """Reads the neurons that the widest variant keeps, and puts the variants on offer.

    Raises:
        ModelError, EngineConfigError: the checkpoint is damaged, or too much was asked of it.
        DeltaError: a delta cannot be read, or is of another model, ranking or width.
    """
    deltas = [read_delta(path, settings.task) for path in settings.deltas]
    engine, builder = load_sizes(
        checkpoint,
        ranking,
        allocation,
        settings.sparsities,
        config,
        deltas=[named.delta for named in deltas],
        progress=True,
    )
    registry = VariantRegistry(builder, settings.sparsities, settings.default_variant_sparsity, deltas)
    return engine, registry


@dataclass(frozen=True)
class Service:
    """The application, and what runs in it."""

    app: FastAPI
    generations: Generations
    probing: Probing | ProbesOff

    def drain(self) -> None:
        """Takes no new requests and ends the probes; what runs goes on."""
        self.generations.drain()
        if isinstance(self.probing, Probing):
            self.probing.cancel()


def assemble(
    settings: ServeSettings,
    loaded: LoadedModel,
    *,
    tracing: "Tracing | None" = None,
    powercap: Path = POWERCAP,
) -> Service:
    """The application over a loaded model.

    Args:
        tracing: is told of every request, and shut down with the application.
        powercap: where the kernel counts joules.
    """
    engine, registry = loaded.engine, loaded.registry
    tokenizer = loaded.checkpoint.tokenizer()
    prompt_tokenizer = PromptTokenizer(tokenizer, loaded.checkpoint.config.vocab_size)
    task = _task(settings, has_chat_template=bool(tokenizer.chat_template))
    graded = None if isinstance(task, ProbesOff) else task
    metrics = Metrics()
    async_engine = AsyncEngine(
        engine, tokenizer.backend_tokenizer, metrics, graded.answered if graded else None
    )
    metrics.registry.register(
        StateCollector(
            metrics,
            engine,
            async_engine,
            registry,
            CostModel(loaded.checkpoint, engine),
            open_energy_meter(torch.device(engine.config.device), powercap),
            graded.name if graded else None,
        )
    )
    shadow = ShadowScorer(
        async_engine, registry, settings.shadow_share, metrics.shadowed, random.Random(secrets.randbits(64))
    )
    generations = Generations(
        async_engine,
        registry,
        VariantPolicy(
            loaded.margin.sparsity,
            settings.allow_unsafe,
            settings.on_degraded,
            settings.auto_accuracy_drop,
            settings.probe_tolerance,
        ),
        metrics,
        max_requests=engine.config.max_num_seqs + engine.config.max_waiting,
        max_waiting=engine.config.max_waiting,
        sampler=shadow,
        observer=tracing,
    )
    probing: Probing | ProbesOff
    if isinstance(task, ProbesOff):
        probing = task
    else:
        store = EvidenceStore(cache_directory(settings) / "evidence.sqlite")
        compare = EngineCompare(async_engine, registry, prompt_tokenizer, metrics.probed)
        probing = Probing(
            task,
            EngineGenerate(async_engine, registry, prompt_tokenizer, metrics.probed),
            registry,
            store,
            identity=_identity(loaded),
            criterion=Criterion(settings.probe_tolerance, CONFIDENCE),
            budget=settings.probe_budget,
            workload=metrics.workload,
            blocked=lambda: generations.num_waiting > 0,
            on_verdict=metrics.verdict_changed,
            guard=_guard(settings, task, compare, store),
            at_once=loaded.engine.config.max_num_seqs,
        )
        registry.consult(probing)
    app = build_app(
        settings=settings,
        engine=async_engine,
        generations=generations,
        registry=registry,
        tokenizer=prompt_tokenizer,
        metrics=metrics,
        probing=probing,
        shadow=shadow,
        live=LiveSource(engine, generations, metrics, probing),
        task=settings.task,
        max_model_len=engine.config.max_model_len,
        tracing=tracing,
    )
    return Service(app, generations, probing)


def _task(settings: ServeSettings, *, has_chat_template: bool) -> Task | ProbesOff:
    """What variants are judged by; without it they are served all the same, unproven."""
    try:
        task = open_task(settings.task, settings.task_options())
    except TaskError as error:
        reason = str(error)
    else:
        if has_chat_template:
            return task
        reason = "the model has no chat template, and probes are chats"
    logger.warning("variants are not judged while serving: %s", reason)
    return ProbesOff(reason)


def _guard(settings: ServeSettings, task: Task, compare: Compare, store: EvidenceStore) -> Guard | None:
    """Watches variants beside the task; a task of one's own may have no general prompts, and does without."""
    try:
        prompts = guard_prompts(settings.guard_prompts, task)
    except TaskError as error:
        if settings.guard_prompts is not None:
            raise
        logger.warning("variants are not watched beside the task: %s; give --guard-prompts", error)
        return None
    return Guard(prompts, compare, store)


def _identity(loaded: LoadedModel) -> Identity:
    checkpoint, config = loaded.checkpoint, loaded.engine.config
    kernels = without_reason(loaded.engine.kernels)
    ends = sorted(checkpoint.eos_token_ids)
    return Identity(
        model=f"{checkpoint.fingerprint} {checkpoint.tokenizer_fingerprint}",
        ranking=loaded.ranking.digest,
        computation=f"{config.device.partition(':')[0]} {config.precision} {kernels} {ends}",
    )


def _check_default(settings: ServeSettings, margin: SafeMargin) -> None:
    default = settings.default_variant_sparsity
    if default > margin.sparsity and not settings.allow_unsafe:
        raise SettingsError(
            f"the default variant's sparsity {default:g} is beyond the safe {margin.sparsity:g} "
            f"({margin.source}): set allow_unsafe, raise safe_sparsity or serve a smaller sparsity"
        )
