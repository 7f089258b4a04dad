"""Everything that /metrics tells. The only importer of prometheus_client.

`Metrics` counts what the engine and the routes report; `StateCollector` reads the rest when it is scraped.
Labels come from closed sets: variants, states, finish reasons, error codes. docs/reference/metrics.md lists
every metric and is held to them by a test.
"""

import platform
from collections.abc import Iterator

import psutil
import torch
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from server import __version__
from server.engine.async_engine import AsyncEngine
from server.engine.engine import Engine
from server.engine.request import FinishReason, RequestStats
from server.engine.stats import StepStats
from server.errors import error_codes
from server.variants import VariantRegistry, VariantState
from server.workload import Workload

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKENS = tuple(float(2**exponent) for exponent in range(14))


class Metrics:
    """Counters and histograms (implements `EngineObserver`). Safe to call from any thread."""

    def __init__(self) -> None:
        # The library's only switch is global; a second series for each would double the page.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.workload = Workload()
        self._requests = self._counter(
            "secateur_requests",
            "Answers that have ended; every choice of a request is one.",
            "variant",
            "finish_reason",
        )
        self._rejections = self._counter(
            "secateur_rejections", "HTTP requests refused, or broken off with an error.", "reason"
        )
        self._prompt_tokens = self._counter(
            "secateur_prompt_tokens", "Tokens of the prompts taken in.", "variant"
        )
        self._generation_tokens = self._counter(
            "secateur_generation_tokens", "Tokens generated and delivered.", "variant"
        )
        self._batch_tokens = self._histogram(
            "secateur_batch_tokens",
            "Tokens of a variant in one step, prompt and output alike.",
            TOKENS,
            "variant",
        )
        self._first_token_seconds = self._histogram(
            "secateur_time_to_first_token_seconds", "From arrival to the first token.", SECONDS, "variant"
        )
        self._inter_token_seconds = self._histogram(
            "secateur_inter_token_seconds",
            "Between one token and the next, as delivered.",
            SECONDS,
            "variant",
        )
        self._request_seconds = self._histogram(
            "secateur_request_seconds", "From arrival to the end, whatever the end was.", SECONDS, "variant"
        )
        self._queue_seconds = self._histogram(
            "secateur_queue_seconds",
            "From arrival to the first step that takes the request in.",
            SECONDS,
            "variant",
        )
        self._step_seconds = self._histogram("secateur_step_seconds", "Of one engine step.", SECONDS)
        self._prefix_queries = self._counter(
            "secateur_prefix_cache_queries", "Prompt tokens looked up in the prefix cache."
        )
        self._prefix_hits = self._counter("secateur_prefix_cache_hits", "Prompt tokens found there.")
        self._preemptions = self._counter(
            "secateur_preemptions", "Answers thrown out of the KV cache to be computed again."
        )
        for code in error_codes():
            self._rejections.labels(code)

    def declare(self, variant: str) -> None:
        """Makes a variant's series appear before its first request, so that rates begin at 0."""
        for reason in FinishReason:
            self._requests.labels(variant, reason.value)
        for metric in (
            self._prompt_tokens,
            self._generation_tokens,
            self._batch_tokens,
            self._first_token_seconds,
            self._inter_token_seconds,
            self._request_seconds,
            self._queue_seconds,
        ):
            metric.labels(variant)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The page, and the content type that suits an Accept header."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def rejected(self, code: str) -> None:
        """An HTTP request was answered with an error of this code."""
        self._rejections.labels(code).inc()

    def prompt(self, variant: str, num_tokens: int) -> None:
        """A prompt was taken in, for however many choices."""
        self._prompt_tokens.labels(variant).inc(num_tokens)

    def step(self, stats: StepStats) -> None:
        self.workload.step(stats)
        self._step_seconds.observe(stats.step_seconds)
        for variant, num_tokens in stats.batch_tokens.items():
            self._batch_tokens.labels(variant).observe(num_tokens)
        self._prefix_queries.inc(stats.prefix_queries)
        self._prefix_hits.inc(stats.prefix_hits)
        self._preemptions.inc(stats.preemptions)

    def tokens(self, variant: str, count: int, *, first: bool, seconds: float) -> None:
        self._generation_tokens.labels(variant).inc(count)
        if first:
            self._first_token_seconds.labels(variant).observe(seconds)
            return
        for _ in range(count):  # tokens that came together share the time they took
            self._inter_token_seconds.labels(variant).observe(seconds / count)

    def finished(self, stats: RequestStats) -> None:
        variant = stats.variant.name
        self._requests.labels(variant, stats.finish_reason.value).inc()
        self._request_seconds.labels(variant).observe(stats.finished_time - stats.arrival_time)
        if stats.first_scheduled_time is not None:
            self._queue_seconds.labels(variant).observe(stats.first_scheduled_time - stats.arrival_time)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labelnames=labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labelnames=labels, buckets=buckets, registry=self.registry)


class StateCollector(Collector):
    """Gauges that are read, not counted: queue, KV, memory, variants, build."""

    def __init__(
        self, metrics: Metrics, engine: Engine, async_engine: AsyncEngine, registry: VariantRegistry
    ) -> None:
        self._metrics = metrics
        self._engine = engine
        self._async_engine = async_engine
        self._registry = registry
        self._device = torch.device(engine.config.device)

    def collect(self) -> Iterator[GaugeMetricFamily | InfoMetricFamily]:
        yield from self._queue()
        yield from self._variants()
        yield from self._memory()
        build = {"version": __version__, "torch": torch.__version__, "python": platform.python_version()}
        yield InfoMetricFamily("secateur_build", "Versions.", {**build, "model": self._registry.model})

    def _queue(self) -> Iterator[GaugeMetricFamily]:
        # The engine steps only while it has work, so with none left the last step's numbers are history.
        step = self._metrics.workload.last_step if self._async_engine.num_unfinished else None
        running = GaugeMetricFamily(
            "secateur_requests_running", "Answers being computed.", labels=["variant"]
        )
        for status in self._registry.offer().statuses:
            name = status.variant.name
            running.add_metric([name], step.running.get(name, 0) if step else 0)
        yield running
        yield GaugeMetricFamily(
            "secateur_requests_waiting", "Answers waiting to be computed.", step.num_waiting if step else 0
        )
        yield GaugeMetricFamily(
            "secateur_kv_usage_ratio",
            "KV blocks that running requests hold, of all.",
            step.kv_usage_ratio if step else 0.0,
        )

    def _variants(self) -> Iterator[GaugeMetricFamily]:
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
        for status in self._registry.offer().statuses:
            name = [status.variant.name]
            standalone.add_metric(name, status.variant.standalone_bytes)
            marginal.add_metric(name, status.variant.marginal_bytes)
            sparsity.add_metric(name, status.variant.exact_sparsity)
            for possible in VariantState:
                state.add_metric([*name, possible.value], float(status.state is possible))
        yield from (standalone, marginal, sparsity, state)

    def _memory(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily(
            "secateur_weight_bytes", "Resident weights, shared by all variants.", self._engine.weight_bytes
        )
        yield GaugeMetricFamily("secateur_kv_bytes", "Memory for KV blocks.", self._engine.kv_bytes)
        own, used, total = _cuda_memory(self._device) if self._device.type == "cuda" else _host_memory()
        help_texts = {
            "secateur_device_memory_process_bytes": ("Held by this process.", own),
            "secateur_device_memory_used_bytes": ("Held by all processes.", used),
            "secateur_device_memory_total_bytes": ("Of the device.", total),
        }
        for name, (text, value) in help_texts.items():
            gauge = GaugeMetricFamily(name, f"Device memory in bytes. {text}", labels=["device"])
            gauge.add_metric([str(self._device)], value)
            yield gauge


def _host_memory() -> tuple[int, int, int]:
    """(resident set of this process, used by all, total), bytes."""
    memory = psutil.virtual_memory()
    return psutil.Process().memory_info().rss, memory.total - memory.available, memory.total


def _cuda_memory(device: torch.device) -> tuple[int, int, int]:
    """(held by torch for this process, used by all according to NVML, total), bytes."""
    total = torch.cuda.get_device_properties(device).total_memory
    return torch.cuda.memory_reserved(device), torch.cuda.device_memory_used(device), total
