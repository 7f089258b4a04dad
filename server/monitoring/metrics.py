"""What /metrics counts. Gauges, which are read when it is scraped, are in server/monitoring/gauges.py.

Labels come from closed sets: variants, finish reasons, traps, verdicts, error codes, sizes of steps. Both
make the table in docs/reference/metrics.md (server/monitoring/metrics_page.py), and a test holds it to a
live server.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.samples import Sample

from eval.probing.verdicts import Verdict
from eval.traps import Trap
from server.engine.request import FinishReason, RequestStats
from server.engine.stats import StepStats
from server.errors import error_codes
from server.judging.agreement import Agreement, ShadowOutcome
from server.monitoring.exposition import Exposition
from server.monitoring.totals import Totals, buckets, by_variant, total
from server.monitoring.workload import Workload

TRAPS = [trap for trap in Trap if trap is not Trap.NONE]
# Each bucket is a line of the page for every variant: as many as tell delays apart that matter.
FIRST_TOKEN_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# Answers are to begin within this time (deploy/prometheus/recording.yml); one left sooner has not missed it.
FIRST_TOKEN_OBJECTIVE_SECONDS = 1.0
INTER_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
REQUEST_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
QUEUE_SECONDS = (0.001, 0.01, 0.05, 0.25, 1.0, 5.0, 30.0, 120.0)
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
BATCH_TOKENS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0)
# How many tokens a step computes, and how /metrics calls it: steps of about as many can be compared.
SOLO_ROWS = {1: "1", 4: "2-4", 8: "5-8", 16: "9-16", 32: "17-32", math.inf: "33+"}

_BROKEN_OFF = (FinishReason.ABORT, FinishReason.ERROR)


class Metrics:
    """Counters and histograms (implements `EngineObserver`). Safe to call from any thread."""

    def __init__(self) -> None:
        # The library's only switch is global; a second series for each would double the page.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.exposition = Exposition(self.registry)
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
            BATCH_TOKENS,
            "variant",
        )
        self._first_token_seconds = self._histogram(
            "secateur_time_to_first_token_seconds",
            "From arrival to the first token; of answers that a client left or an error ended before it, "
            f"after more than {FIRST_TOKEN_OBJECTIVE_SECONDS:g} s, to that end.",
            FIRST_TOKEN_SECONDS,
            "variant",
        )
        self._inter_token_seconds = self._histogram(
            "secateur_inter_token_seconds",
            "Between one token and the next, as delivered.",
            INTER_TOKEN_SECONDS,
            "variant",
        )
        self._request_seconds = self._histogram(
            "secateur_request_seconds",
            "From arrival to the end, whatever the end was.",
            REQUEST_SECONDS,
            "variant",
        )
        self._queue_seconds = self._histogram(
            "secateur_queue_seconds",
            "From arrival to the first step that takes the request in.",
            QUEUE_SECONDS,
            "variant",
        )
        self._step_seconds = self._histogram("secateur_step_seconds", "Of one engine step.", STEP_SECONDS)
        self._solo_step_seconds = self._counter(
            "secateur_solo_step_seconds",
            "Seconds of the steps in which one variant decoded and nothing else happened.",
            "variant",
            "rows",
        )
        self._solo_steps = self._counter(
            "secateur_solo_steps", "Those steps, by how many tokens each computed.", "variant", "rows"
        )
        self._prefix_queries = self._counter(
            "secateur_prefix_cache_queries", "Prompt tokens looked up in the prefix cache."
        )
        self._prefix_hits = self._counter("secateur_prefix_cache_hits", "Prompt tokens found there.")
        self._guessed_tokens = self._counter(
            "secateur_guessed_tokens", "Tokens guessed ahead by prompt lookup, and computed."
        )
        self._right_guesses = self._counter("secateur_right_guesses", "Those of them that came true.")
        self._preemptions = self._counter(
            "secateur_preemptions", "Answers thrown out of the KV cache to be computed again."
        )
        self._traps = self._counter(
            "secateur_traps", "Answers that did not end by themselves.", "variant", "trap"
        )
        self._background_tokens = self._counter(
            "secateur_background_tokens", "Tokens computed for probes and shadow scores.", "variant"
        )
        self._probe_tokens = self._counter(
            "secateur_probe_tokens", "Tokens of probes and their answers.", "variant"
        )
        self._verdict_changes = self._counter(
            "secateur_verdict_changes",
            "Times that a variant's verdict became this one.",
            "variant",
            "verdict",
        )
        self._shadow_answers = self._counter(
            "secateur_shadow_answers", "Answers drawn for the dense variant to score.", "variant", "outcome"
        )
        self._shadow_tokens = self._counter(
            "secateur_shadow_tokens", "Tokens that the dense variant has scored.", "variant"
        )
        self._shadow_agreements = self._counter(
            "secateur_shadow_agreements", "Those where it would choose the same token.", "variant"
        )
        self._shadow_kl = self._counter(
            "secateur_shadow_kl_nats", "Sum over them of the divergence from the dense variant.", "variant"
        )
        self._shadow_worst_tokens = self._counter(
            "secateur_shadow_worst_tokens", "The fifth of each answer's tokens that diverges most.", "variant"
        )
        self._shadow_worst_kl = self._counter(
            "secateur_shadow_worst_kl_nats", "Sum over those of the divergence.", "variant"
        )
        # Of all that is counted the most frequent: looking its series up would take half of its time.
        self._deliveries: dict[str, _Deliveries] = {}
        for code in error_codes():
            self._rejections.labels(code)

    def declare(self, variant: str) -> None:
        """Makes a variant's series appear before its first request, so that rates begin at 0."""
        for reason in FinishReason:
            self._requests.labels(variant, reason.value)
        for trap in TRAPS:
            self._traps.labels(variant, trap.value)
        for verdict in Verdict:
            self._verdict_changes.labels(variant, verdict.value)
        for outcome in ShadowOutcome:
            self._shadow_answers.labels(variant, outcome.value)
        for rows in SOLO_ROWS.values():
            self._solo_step_seconds.labels(variant, rows)
            self._solo_steps.labels(variant, rows)
        for metric in (
            self._background_tokens,
            self._probe_tokens,
            self._shadow_tokens,
            self._shadow_agreements,
            self._shadow_kl,
            self._shadow_worst_tokens,
            self._shadow_worst_kl,
            self._prompt_tokens,
            self._generation_tokens,
            self._batch_tokens,
            self._first_token_seconds,
            self._inter_token_seconds,
            self._request_seconds,
            self._queue_seconds,
        ):
            metric.labels(variant)

    def totals(self) -> Totals:
        """What the counters stand at."""
        return Totals(
            requests=by_variant(_samples(self._requests)),
            rejections=total(_samples(self._rejections)),
            prompt_tokens=by_variant(_samples(self._prompt_tokens)),
            generation_tokens=by_variant(_samples(self._generation_tokens)),
            first_token_seconds=buckets(_samples(self._first_token_seconds)),
            inter_token_seconds=buckets(_samples(self._inter_token_seconds)),
        )

    def rejected(self, code: str) -> None:
        """An HTTP request was answered with an error of this code."""
        self._rejections.labels(code).inc()

    def prompt(self, variant: str, num_tokens: int) -> None:
        """A prompt was taken in, for however many choices."""
        self._prompt_tokens.labels(variant).inc(num_tokens)

    def probed(self, variant: str, num_tokens: int) -> None:
        """A probe was answered; its tokens and the answer's."""
        self._probe_tokens.labels(variant).inc(num_tokens)

    def verdict_changed(self, variant: str, verdict: Verdict) -> None:
        self._verdict_changes.labels(variant, verdict.value).inc()

    def shadowed(self, variant: str, outcome: ShadowOutcome, found: Agreement | None) -> None:
        """An answer was drawn for the dense variant to score; `found` where it did."""
        self._shadow_answers.labels(variant, outcome.value).inc()
        if found is not None:
            self._shadow_tokens.labels(variant).inc(found.tokens)
            self._shadow_agreements.labels(variant).inc(found.agreements)
            self._shadow_kl.labels(variant).inc(found.kl_nats)
            self._shadow_worst_tokens.labels(variant).inc(found.worst_tokens)
            self._shadow_worst_kl.labels(variant).inc(found.worst_kl_nats)

    def step(self, stats: StepStats) -> None:
        self.workload.step(stats)
        self._step_seconds.observe(stats.step_seconds)
        for variant, num_tokens in stats.batch_tokens.items():
            self._batch_tokens.labels(variant).observe(num_tokens)
        if stats.num_solo_rows:
            [variant] = stats.batch_tokens
            rows = next(name for most, name in SOLO_ROWS.items() if stats.num_solo_rows <= most)
            self._solo_step_seconds.labels(variant, rows).inc(stats.step_seconds)
            self._solo_steps.labels(variant, rows).inc()
        for variant, num_tokens in stats.background_tokens.items():
            self._background_tokens.labels(variant).inc(num_tokens)
        self._prefix_queries.inc(stats.prefix_queries)
        self._prefix_hits.inc(stats.prefix_hits)
        self._guessed_tokens.inc(stats.guessed_tokens)
        self._right_guesses.inc(stats.right_guesses)
        self._preemptions.inc(stats.preemptions)

    def tokens(self, variant: str, count: int, *, first: bool, seconds: float) -> None:
        series = self._deliveries.get(variant)
        if series is None:
            series = self._deliveries[variant] = _Deliveries(
                self._generation_tokens.labels(variant),
                self._first_token_seconds.labels(variant),
                self._inter_token_seconds.labels(variant),
            )
        series.tokens.inc(count)
        if first:
            series.first_seconds.observe(seconds)
            return
        for _ in range(count):  # tokens that came together share the time they took
            series.later_seconds.observe(seconds / count)

    def finished(self, stats: RequestStats) -> None:
        variant = stats.variant.name
        self._requests.labels(variant, stats.finish_reason.value).inc()
        if stats.trap is not Trap.NONE:
            self._traps.labels(variant, stats.trap.value).inc()
        seconds = stats.finished_time - stats.arrival_time
        self._request_seconds.labels(variant).observe(seconds)
        # Else a stall that all clients leave would look like nothing at all.
        given_up = (
            stats.wanted_tokens > 0 and stats.first_token_time is None and stats.finish_reason in _BROKEN_OFF
        )
        if given_up and seconds > FIRST_TOKEN_OBJECTIVE_SECONDS:
            self._first_token_seconds.labels(variant).observe(seconds)
        if stats.first_scheduled_time is not None:
            self._queue_seconds.labels(variant).observe(stats.first_scheduled_time - stats.arrival_time)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labelnames=labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labelnames=labels, buckets=buckets, registry=self.registry)


class _Deliveries(NamedTuple):
    """One variant's series of what reaches streams."""

    tokens: Counter
    first_seconds: Histogram
    later_seconds: Histogram


def _samples(metric: Counter | Histogram) -> Iterator[Sample]:
    return (sample for family in metric.collect() for sample in family.samples)
