"""Reads a serving process for its live view: now, and from the history of the last minutes.

Belongs to the event loop. Counts nothing itself; what it says is what /metrics and /v1/variants say.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from server import __version__
from server.engine.engine import Engine
from server.generation import Generations
from server.judging.evidence import evidence_object
from server.judging.probing import ProbesOff, Probing
from server.monitoring.live import Accuracy, Interval, LiveHistory, Reading
from server.monitoring.live_schema import (
    Limits,
    LiveEvidence,
    LiveState,
    LiveVariant,
    LiveVerdict,
    Memory,
    Series,
    ServerState,
    VariantSeries,
)
from server.monitoring.memory import DeviceMemory, device_memory, process_bytes
from server.monitoring.metrics import Metrics
from server.variants import VariantRegistry, VariantStatus

INTERVAL_SECONDS = 2.0
SPAN_SECONDS = 15 * 60.0
MAX_VERDICTS = 200


class LiveSource:
    """Takes readings for a history, and puts the whole view together.

    Args:
        engine: asked for sizes and limits alone, which do not change.
    """

    def __init__(
        self,
        engine: Engine,
        generations: Generations,
        metrics: Metrics,
        probing: Probing | ProbesOff,
    ) -> None:
        self._engine = engine
        self._generations = generations
        self._registry: VariantRegistry = generations.registry
        self._metrics = metrics
        self._probing = probing
        self._device = torch.device(engine.config.device)
        self.history = LiveHistory(self.read, INTERVAL_SECONDS, SPAN_SECONDS)

    def read(self) -> Reading:
        """What is known at this moment."""
        statuses = self._registry.offer().statuses
        # The engine steps only while it has work, so with none left the last step's numbers are history.
        step = self._metrics.workload.last_step if self._generations.engine.num_unfinished else None
        names = [status.variant.name for status in statuses]
        return Reading(
            time=time.time(),
            clock=time.monotonic(),
            totals=self._metrics.totals(),
            running={name: step.running.get(name, 0) if step else 0 for name in names},
            waiting=(step.num_waiting if step else 0) + self._generations.engine.num_untaken,
            kv_usage_ratio=step.kv_usage_ratio if step else 0.0,
            process_bytes=process_bytes(self._device),
            accuracies=_accuracies(statuses),
        )

    def state(self, since: float | None) -> LiveState:
        """Everything; of the series, what came after `since` (seconds since the epoch; None: all)."""
        now = self.read()
        statuses = self._registry.offer().statuses
        intervals = self.history.since(since)
        probing = None if isinstance(self._probing, ProbesOff) else self._probing
        return LiveState(
            model=self._registry.model,
            version=__version__,
            started=self.history.started,
            now=now.time,
            interval_seconds=self.history.interval_seconds,
            state=self._server_state(),
            task=probing.task.name if probing else None,
            tolerance=probing.criterion.tolerance if probing else None,
            safe_sparsity=self._generations.policy.safe_sparsity,
            default_variant=next(status.variant.name for status in statuses if status.is_default),
            limits=self._limits(),
            memory=self._memory(),
            series=_series(intervals),
            variants=[_variant(status, now, intervals) for status in statuses],
            verdicts=_verdicts(statuses),
        )

    def _server_state(self) -> ServerState:
        if not self._generations.engine.is_alive:
            return "dead"
        if self._generations.is_draining:
            return "draining"
        return "stuck" if self._generations.engine.is_stuck else "ready"

    def _limits(self) -> Limits:
        config = self._engine.config
        return Limits(
            max_running=config.max_num_seqs,
            max_waiting=config.max_waiting,
            max_model_len=config.max_model_len,
            max_num_batched_tokens=config.max_num_batched_tokens,
            kv_bytes=self._engine.kv_bytes,
        )

    def _memory(self) -> Memory:
        try:
            device = device_memory(self._device)
        except RuntimeError:  # after a fault CUDA answers nothing any more
            device = DeviceMemory(0, 0, 0)
        return Memory(
            weight_bytes=self._engine.weight_bytes,
            kv_bytes=self._engine.kv_bytes,
            process_bytes=device.process,
            device_used_bytes=device.used,
            device_total_bytes=device.total,
        )


def _accuracies(statuses: Sequence[VariantStatus]) -> dict[str, Accuracy]:
    known = {status.variant.name: status.evidence for status in statuses if status.evidence is not None}
    return {
        name: Accuracy(evidence.accuracy, evidence.accuracy_low, evidence.accuracy_high)
        for name, evidence in known.items()
        if evidence.accuracy is not None
    }


def _series(intervals: Sequence[Interval]) -> Series:
    def column(value: Callable[[Interval], Any]) -> list[Any]:
        return [value(interval) for interval in intervals]

    return Series(
        time=column(lambda i: i.time),
        generation_tokens_per_second=column(lambda i: i.generation_tokens_per_second),
        prompt_tokens_per_second=column(lambda i: i.prompt_tokens_per_second),
        requests_per_second=column(lambda i: i.requests_per_second),
        rejections_per_second=column(lambda i: i.rejections_per_second),
        running=column(lambda i: i.running),
        waiting=column(lambda i: i.waiting),
        kv_usage_ratio=column(lambda i: i.kv_usage_ratio),
        time_to_first_token_p50_seconds=column(lambda i: i.first_token_p50),
        time_to_first_token_p95_seconds=column(lambda i: i.first_token_p95),
        inter_token_p50_seconds=column(lambda i: i.inter_token_p50),
        inter_token_p95_seconds=column(lambda i: i.inter_token_p95),
        process_bytes=column(lambda i: i.process_bytes),
    )


def _variant(status: VariantStatus, now: Reading, intervals: Sequence[Interval]) -> LiveVariant:
    variant, totals = status.variant, now.totals
    name = variant.name
    mine = [interval.variants.get(name) for interval in intervals]
    accuracies = [part.accuracy if part else None for part in mine]
    return LiveVariant(
        name=name,
        sparsity=variant.sparsity,
        exact_sparsity=variant.exact_sparsity,
        state=status.state.value,
        running=now.running.get(name, 0),
        requests=totals.requests.get(name, 0),
        prompt_tokens=totals.prompt_tokens.get(name, 0),
        generation_tokens=totals.generation_tokens.get(name, 0),
        standalone_bytes=variant.standalone_bytes,
        marginal_bytes=variant.marginal_bytes,
        evidence=_evidence(status, now.time),
        series=VariantSeries(
            generation_tokens_per_second=[
                part.generation_tokens_per_second if part else None for part in mine
            ],
            accuracy=[known.value if known else None for known in accuracies],
            accuracy_lower=[known.lower if known else None for known in accuracies],
            accuracy_upper=[known.upper if known else None for known in accuracies],
        ),
    )


def _evidence(status: VariantStatus, now: float) -> LiveEvidence | None:
    if status.evidence is None:
        return None
    return LiveEvidence.model_validate(evidence_object(status.evidence, now))


def _verdicts(statuses: Sequence[VariantStatus]) -> list[LiveVerdict]:
    """Of the variants on offer, newest last."""
    found = [
        LiveVerdict(
            time=change.at,
            variant=status.variant.name,
            verdict=change.after.value,
            previous=change.before.value,
        )
        for status in statuses
        for change in status.changes
    ]
    return sorted(found, key=lambda verdict: verdict.time)[-MAX_VERDICTS:]
