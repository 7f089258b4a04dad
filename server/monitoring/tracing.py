"""OpenTelemetry spans of requests, made when a request is over, from times that were taken anyway.

One span a request, beneath it for each answer `queue`, `prefill`, `decode` and `detokenise`. Attributes are
GenAI semantic conventions' (1.41, in development), and `secateur.`'s own where those have no name. No text
of prompts or answers is in any of them. Needs the extra `otel`: imported only where traces are wanted.
"""

import os
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from server import __version__
from server.answers import AnswerFormat, ChatFormat, CompletionFormat
from server.engine.request import FinishReason, RequestStats, SamplingParams
from server.generation import GenerationRecord
from server.settings import SettingsError

PROTOCOL = "http/protobuf"
_PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
# How the conventions call what a path does, and whose ids its answers have.
_OPERATIONS: Mapping[str, tuple[str, type[AnswerFormat]]] = {
    "/v1/chat/completions": ("chat", ChatFormat),
    "/v1/completions": ("text_completion", CompletionFormat),
}

Attributes = dict[str, AttributeValue]


class Phase(NamedTuple):
    """A part of an answer's way, monotonic seconds."""

    name: str
    start: float
    end: float


class Tracing:
    """Makes spans of requests that are over (implements `GenerationObserver`). Belongs to the event loop.

    Args:
        processor: takes the spans; a BatchSpanProcessor sends them on a thread of its own.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        told = OTELResourceDetector().detect().attributes.get(SERVICE_NAME, "secateur")
        resource = Resource.create({SERVICE_NAME: told, SERVICE_VERSION: __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("secateur", __version__)

    def closed(self, record: GenerationRecord) -> None:
        """Its span and those beneath, where it is sampled; the parent is what its headers name."""
        operation, answer_format = _OPERATIONS[record.origin.path]
        model = None if record.ask is None else record.ask.model
        # Spans want nanoseconds since 1970, and all of one request's must agree.
        epoch = time.time() - time.monotonic()

        def nanoseconds(seconds: float) -> int:
            return int((epoch + seconds) * 1e9)

        span = self._tracer.start_span(
            operation if model is None else f"{operation} {model}",
            context=propagate.extract(record.origin.headers),
            kind=SpanKind.SERVER,
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.response.id": f"{answer_format.id_prefix}-{record.request_id}",
                **_asked(record),
                **_answered(record),
            },
            start_time=nanoseconds(record.opened_time),
        )
        if record.error_code is not None:  # a client that left is no error
            span.set_attribute("error.type", record.error_code)
            span.set_status(Status(StatusCode.ERROR))
        if span.is_recording():
            beneath = trace.set_span_in_context(span)
            for index, answer in enumerate(record.answers):
                for name, start, end in phases(answer):
                    self._tracer.start_span(
                        name,
                        context=beneath,
                        attributes={"secateur.choice.index": index},
                        start_time=nanoseconds(start),
                    ).end(nanoseconds(end))
        span.end(nanoseconds(record.closed_time))

    def shutdown(self) -> None:
        """Sends what is left. Waits for the collector, as long as OTEL_EXPORTER_OTLP_TIMEOUT says."""
        self._provider.shutdown()


def open_tracing() -> Tracing:
    """Sends spans where the OTEL_* variables say: without any, to a collector on this machine.

    Raises:
        SettingsError: they name a protocol that this extra does not bring.
    """
    protocol = next((os.environ[name] for name in _PROTOCOL_VARIABLES if os.environ.get(name)), PROTOCOL)
    if protocol != PROTOCOL:
        raise SettingsError(
            f"traces are sent by {PROTOCOL}, not {protocol}: unset {' and '.join(_PROTOCOL_VARIABLES)}, and "
            "give OTEL_EXPORTER_OTLP_ENDPOINT the collector's HTTP port (4318)"
        )
    return Tracing(BatchSpanProcessor(OTLPSpanExporter()))


def phases(answer: RequestStats) -> Iterator[Phase]:
    """What an answer went through, without gaps from its arrival to its end.

    queue: until a step takes it in. prefill: until the step that gives its first token has ended. decode:
    until the last such step has. detokenise: until all of it is text, searched for stop strings, handed over.
    One that was cut off ends in the phase that it had come to. Waiting after a preemption is decoding.
    """
    is_cut_off = answer.finish_reason in (FinishReason.ABORT, FinishReason.ERROR)
    ends = (
        ("queue", answer.first_scheduled_time),
        ("prefill", answer.first_output_time),
        ("decode", None if is_cut_off else answer.last_output_time),
        ("detokenise", None),
    )
    start = answer.arrival_time
    for name, end in ends:
        yield Phase(name, start, answer.finished_time if end is None else end)
        if end is None:
            return
        start = end


def _asked(record: GenerationRecord) -> Attributes:
    told: Attributes = {"gen_ai.provider.name": "secateur", "gen_ai.output.type": "text"}
    if record.ask is not None and record.ask.model is not None:
        told["gen_ai.request.model"] = record.ask.model
    if record.is_streamed:
        told["gen_ai.request.stream"] = True
    if record.num_choices != 1:
        told["gen_ai.request.choice.count"] = record.num_choices
    return told if record.sampling is None else {**told, **_sampled(record.sampling)}


def _sampled(sampling: SamplingParams) -> Attributes:
    """As it was applied, defaults among it. Stop strings are the client's text, and left out."""
    told: Attributes = {
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": float(sampling.temperature),
        "gen_ai.request.top_p": float(sampling.top_p),
        "gen_ai.request.presence_penalty": float(sampling.presence_penalty),
        "gen_ai.request.frequency_penalty": float(sampling.frequency_penalty),
    }
    if sampling.top_k:
        told["gen_ai.request.top_k"] = float(sampling.top_k)
    if sampling.seed is not None:
        told["gen_ai.request.seed"] = sampling.seed
    return told


def _answered(record: GenerationRecord) -> Attributes:
    told: Attributes = {}
    if record.decision is not None:
        variant = record.decision.variant
        told |= {
            "gen_ai.response.model": variant.name,
            "secateur.sparsity": variant.sparsity,
            "secateur.exact_sparsity": variant.exact_sparsity,
            "secateur.reason": record.decision.reason.value,
        }
    if record.answers:
        told |= {
            "gen_ai.response.finish_reasons": [answer.finish_reason.value for answer in record.answers],
            "gen_ai.usage.input_tokens": record.usage.prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": record.usage.cached_tokens,
            "gen_ai.usage.output_tokens": record.usage.completion_tokens,
        }
    delivered = [a.first_token_time for a in record.answers if a.first_token_time is not None]
    if record.is_streamed and delivered:
        told["gen_ai.response.time_to_first_chunk"] = min(delivered) - record.opened_time
    return told
