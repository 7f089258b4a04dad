"""What /metrics reads when it is scraped: queue, KV, memory, variants and what is known of them, build."""

import math
import platform
import time
from collections.abc import Iterator, Sequence

import torch
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from eval.probing.verdicts import Evidence, Verdict
from server import __version__
from server.engine.async_engine import AsyncEngine
from server.engine.engine import Engine
from server.engine.kernels import without_reason
from server.monitoring.efficiency import CostModel
from server.monitoring.memory import device_memory
from server.monitoring.metrics import Metrics
from server.monitoring.power import EnergyMeter
from server.variants import VariantRegistry, VariantState, VariantStatus


class StateCollector(Collector):
    """Gauges of a serving process, and counters that others keep.

    Args:
        costs: of the engine's variants.
        task: that variants are judged by; None where they are not.
    """

    def __init__(
        self,
        metrics: Metrics,
        engine: Engine,
        async_engine: AsyncEngine,
        registry: VariantRegistry,
        costs: CostModel,
        energy: EnergyMeter,
        task: str | None,
    ) -> None:
        self._metrics = metrics
        self._engine = engine
        self._async_engine = async_engine
        self._registry = registry
        self._costs = costs
        self._energy = energy
        self._task = task
        self._device = torch.device(engine.config.device)
        self._start_time = time.time()

    def collect(self) -> Iterator[Metric]:
        statuses = self._registry.offer().statuses
        yield from self._queue(statuses)
        yield from self._variants(statuses)
        yield from self._token_costs(statuses)
        if self._task is not None:
            yield from self._evidence(statuses, self._task)
            yield from _guard(statuses)
        yield from self._memory()
        yield from self._joules()
        yield GaugeMetricFamily(
            "secateur_start_time_seconds",
            "Unix time at which this process began to serve: another one after each start.",
            self._start_time,
        )
        build = {
            "version": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "model": self._registry.model,
            "kernels": without_reason(self._async_engine.kernels),
            "precision": self._async_engine.precision,
        }
        yield InfoMetricFamily("secateur_build", "1; what runs, and in which numbers.", build)

    def _queue(self, statuses: Sequence[VariantStatus]) -> Iterator[GaugeMetricFamily]:
        # The engine steps only while it has work, so with none left the last step's numbers are history.
        step = self._metrics.workload.last_step if self._async_engine.num_unfinished else None
        running = GaugeMetricFamily(
            "secateur_requests_running", "Answers being computed.", labels=["variant"]
        )
        for status in statuses:
            name = status.variant.name
            running.add_metric([name], step.running.get(name, 0) if step else 0)
        yield running
        yield GaugeMetricFamily(
            "secateur_engine_up",
            "1 while the engine runs; 0 when it has died, and every request gets a 503.",
            float(self._async_engine.is_alive),
        )
        yield GaugeMetricFamily(
            "secateur_step_age_seconds",
            "Since the engine step that runs began; 0 where none does. It grows while an engine hangs.",
            self._async_engine.step_age_seconds,
        )
        yield GaugeMetricFamily(
            "secateur_requests_waiting",
            "Answers waiting to be computed.",
            (step.num_waiting if step else 0) + self._async_engine.num_untaken,
        )
        yield GaugeMetricFamily(
            "secateur_kv_usage_ratio",
            "KV blocks that running requests hold, of all.",
            step.kv_usage_ratio if step else 0.0,
        )

    def _variants(self, statuses: Sequence[VariantStatus]) -> Iterator[GaugeMetricFamily]:
        labels = ["variant"]
        standalone = GaugeMetricFamily(
            "secateur_variant_standalone_bytes", "Weights of this variant if it were alone.", labels=labels
        )
        marginal = GaugeMetricFamily(
            "secateur_variant_marginal_bytes", "Weights held for this variant and no other.", labels=labels
        )
        sparsity = GaugeMetricFamily(
            "secateur_variant_sparsity_ratio", "MLP neurons left out, exactly.", labels=labels
        )
        state = GaugeMetricFamily(
            "secateur_variant_state", "1 for the state that the variant is in.", labels=["variant", "state"]
        )
        default = GaugeMetricFamily(
            "secateur_variant_default", "1 for the variant of requests that name none.", labels=labels
        )
        for status in statuses:
            name = [status.variant.name]
            standalone.add_metric(name, status.variant.standalone_bytes)
            marginal.add_metric(name, status.variant.marginal_bytes)
            sparsity.add_metric(name, status.variant.exact_sparsity)
            default.add_metric(name, float(status.is_default))
            for possible in VariantState:
                state.add_metric([*name, possible.value], float(status.state is possible))
        yield from (standalone, marginal, sparsity, state, default)

    def _token_costs(self, statuses: Sequence[VariantStatus]) -> Iterator[GaugeMetricFamily]:
        gauges = {
            name: GaugeMetricFamily(name, text, labels=["variant"]) for name, text in COST_TEXTS.items()
        }
        dense = self._costs.dense
        for status in statuses:
            cost = self._costs.of(status.variant)
            relative = (cost.flops / dense.flops, cost.weight_bytes / dense.weight_bytes)
            for gauge, value in zip(gauges.values(), (cost.flops, cost.weight_bytes, *relative), strict=True):
                gauge.add_metric([status.variant.name], value)
        yield from gauges.values()

    def _evidence(self, statuses: Sequence[VariantStatus], task: str) -> Iterator[GaugeMetricFamily]:
        labels = ["variant", "task"]
        gauges = {name: GaugeMetricFamily(name, text, labels=labels) for name, text in EVIDENCE_TEXTS.items()}
        verdicts = GaugeMetricFamily(
            "secateur_probe_verdict", "1 for the verdict on the variant.", labels=[*labels, "verdict"]
        )
        for status in statuses:
            key = [status.variant.name, task]
            known = status.evidence
            for name, value in zip(gauges, _evidence_values(known), strict=True):
                gauges[name].add_metric(key, math.nan if value is None else value)
            verdict = Verdict.UNPROVEN if known is None else known.verdict
            for possible in Verdict:
                verdicts.add_metric([*key, possible.value], float(verdict is possible))
        yield from (*gauges.values(), verdicts)

    def _memory(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily(
            "secateur_weight_bytes", "Resident weights, shared by all variants.", self._engine.weight_bytes
        )
        yield GaugeMetricFamily("secateur_kv_bytes", "Memory for KV blocks.", self._engine.kv_bytes)
        try:
            memory = device_memory(self._device)
        except RuntimeError:  # after a fault CUDA answers nothing any more; all else must be told
            return
        help_texts = {
            "secateur_device_memory_process_bytes": (
                "Held by this process: by torch on CUDA, its resident set on the CPU.",
                memory.process,
            ),
            "secateur_device_memory_used_bytes": (
                "Held by all processes: what is not free on CUDA, what is not available on the CPU.",
                memory.used,
            ),
            "secateur_device_memory_total_bytes": ("Memory of the device.", memory.total),
        }
        for name, (text, value) in help_texts.items():
            gauge = GaugeMetricFamily(name, text, labels=["device"])
            gauge.add_metric([str(self._device)], value)
            yield gauge

    def _joules(self) -> Iterator[CounterMetricFamily]:
        joules = self._energy.joules()
        if not joules:  # what nobody can measure is not there, and not 0
            return
        counter = CounterMetricFamily(
            "secateur_energy_joules",
            "Energy that the hardware has used since the start, for whatever ran on it.",
            labels=["source"],
        )
        for source, value in joules.items():
            counter.add_metric([source], value)
        yield counter


COST_TEXTS = {
    "secateur_flops_per_token": "Modelled FLOPs of generating one token, without attention's own products.",
    "secateur_weight_bytes_per_token": "Bytes of weights that a step of one token reads.",
    "secateur_variant_relative_flops_ratio": "FLOPs of a token over the dense model's, served or not.",
    "secateur_variant_relative_bytes_ratio": "Bytes of weights of a token over the dense model's.",
}

EVIDENCE_TEXTS = {
    "secateur_probe_items": "Different probes that the evidence rests on.",
    "secateur_probe_age_seconds": "Since the last probe was judged.",
    "secateur_probe_accuracy_ratio": "Share of the probes solved.",
    "secateur_probe_accuracy_lower_ratio": "Lower bound of it, Wilson's, 95%.",
    "secateur_probe_accuracy_upper_ratio": "Upper bound of it.",
    "secateur_probe_drop_ratio": "The densest variant's accuracy minus this one's, on the same probes.",
    "secateur_probe_drop_lower_ratio": "Lower bound of it, valid at all times at once, 95%.",
    "secateur_probe_drop_upper_ratio": "Upper bound of it.",
    "secateur_probe_trap_ratio": "Share of the probes whose answer did not end by itself.",
}


GUARD_TEXTS = {
    "secateur_guard_tokens": "Tokens of the last answers to guard prompts that the two below rest on.",
    "secateur_guard_agreement_ratio": "Share of them that it finds likeliest as the densest variant does.",
    "secateur_guard_kl_nats": "Mean divergence from the densest variant over them, a token.",
}


def _guard(statuses: Sequence[VariantStatus]) -> Iterator[GaugeMetricFamily]:
    gauges = [GaugeMetricFamily(name, text, labels=["variant"]) for name, text in GUARD_TEXTS.items()]
    for status in statuses:
        known = status.guard
        values = (known.tokens, known.agreement, known.kl_nats) if known else (0, math.nan, math.nan)
        for gauge, value in zip(gauges, values, strict=True):
            gauge.add_metric([status.variant.name], value)
    yield from gauges


def _evidence_values(known: Evidence | None) -> list[float | None]:
    """In the order of EVIDENCE_TEXTS; None where there is nothing to tell."""
    if known is None:
        return [0.0, *[None] * (len(EVIDENCE_TEXTS) - 1)]
    return [
        known.items,
        known.age_seconds(time.time()),
        known.accuracy,
        known.accuracy_low,
        known.accuracy_high,
        known.drop,
        known.drop_low,
        known.drop_high,
        known.trap_rate,
    ]
