"""Spans tell a request's way as it was: what was asked, what came of it, how long it took, and no text."""

import gzip
import itertools
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode

from eval.traps import Trap
from server.commands.serve import serve
from server.engine.request import FinishReason, RequestStats
from server.engine.variant import Variant
from server.monitoring.tracing import Phase, Tracing, open_tracing, phases
from server.settings import ServeSettings, SettingsError
from tests.integration.live import WAIT_SECONDS, Live, Tiny, make_tiny, running
from tests.integration.sse import chunks

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SECRET = "zzqqzz"  # stands in every prompt here
PHASES = ["queue", "prefill", "decode", "detokenise"]
ENDED = RequestStats(
    variant=Variant("tiny:s0", 0.0, 0.0, (1,), 0, 0),
    finish_reason=FinishReason.LENGTH,
    arrival_time=1.0,
    first_scheduled_time=2.0,
    first_output_time=4.0,
    first_token_time=4.5,
    last_output_time=7.0,
    finished_time=8.0,
    prompt_tokens=3,
    cached_tokens=0,
    wanted_tokens=16,
    generated_tokens=5,
    trap=Trap.NONE,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("traced"))


class Traced:
    """A server whose spans are kept in memory."""

    def __init__(self, live: Live, client: httpx.Client, exporter: InMemorySpanExporter) -> None:
        self.client = client
        self._live = live
        self._exporter = exporter

    def is_busy(self) -> bool:
        """Not with what an earlier client left: of that the engine's own thread hears a step later."""
        return self._live.generations.engine.num_unfinished > 0

    def spans(self) -> list[ReadableSpan]:
        """Since the last time, when every request is over."""
        deadline = time.monotonic() + WAIT_SECONDS
        while self._live.generations.num_open:
            assert time.monotonic() < deadline, "a request is never over"
            time.sleep(0.002)
        found = self._exporter.get_finished_spans()
        self._exporter.clear()
        return list(found)


@pytest.fixture(scope="module")
def traced(tiny: Tiny) -> Iterator[Traced]:
    exporter = InMemorySpanExporter()
    tracing = Tracing(SimpleSpanProcessor(exporter))
    with running(tiny, tracing=tracing) as live, live.client() as client:
        yield Traced(live, client, exporter)


def split(spans: list[ReadableSpan]) -> tuple[ReadableSpan, list[ReadableSpan]]:
    """The request's span and those beneath it."""
    [request] = [span for span in spans if span.kind is SpanKind.SERVER]
    return request, [span for span in spans if span is not request]


def test_phases_follow_each_other_from_arrival_to_end() -> None:
    assert list(phases(ENDED)) == [
        Phase("queue", 1, 2),
        Phase("prefill", 2, 4),
        Phase("decode", 4, 7),
        Phase("detokenise", 7, 8),
    ]


@pytest.mark.parametrize(
    ("came_to", "ended"),
    [
        ({"first_scheduled_time": None, "first_output_time": None, "last_output_time": None}, "queue"),
        ({"first_output_time": None, "last_output_time": None}, "prefill"),
        ({}, "decode"),
    ],
)
@pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.ERROR])
def test_an_answer_that_was_cut_off_ends_in_the_phase_that_it_had_come_to(
    came_to: dict[str, None], ended: str, reason: FinishReason
) -> None:
    found = list(phases(replace(ENDED, finish_reason=reason, **came_to)))
    assert [phase.name for phase in found] == PHASES[: PHASES.index(ended) + 1]
    assert found[-1].end == ENDED.finished_time


def test_a_request_is_one_span_that_tells_what_the_client_was_told(traced: Traced) -> None:
    body = {
        "model": "tiny:s10",
        "messages": [{"role": "user", "content": SECRET}],
        "max_tokens": 7,
        "temperature": 0.5,
        "seed": 3,
        "ignore_eos": True,
        "stop": ["\x00never"],
    }
    answer = traced.client.post(CHAT, json=body).json()
    request, beneath = split(traced.spans())
    assert request.name == "chat tiny:s10"
    assert request.parent is None
    assert request.status.status_code is StatusCode.UNSET
    told = dict(request.attributes or {})
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "secateur",
        "gen_ai.output.type": "text",
        "gen_ai.request.model": "tiny:s10",
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.request.seed": 3,
        "gen_ai.response.id": answer["id"],
        "gen_ai.response.model": "tiny:s10",
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": answer["usage"]["prompt_tokens"],
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.output_tokens": 7,
        "secateur.sparsity": 0.1,
        "secateur.exact_sparsity": answer["secateur"]["exact_sparsity"],
        "secateur.reason": "requested",
    }
    known = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")}
    assert {name for name in told if name.startswith("gen_ai.")} <= known
    assert [span.name for span in beneath] == PHASES
    ends = [(request.start_time or 0), *(span.end_time or 0 for span in beneath), (request.end_time or 0)]
    assert ends == sorted(ends)
    for span, following in itertools.pairwise(beneath):
        assert span.end_time == following.start_time
        assert span.parent == request.context


def test_every_answer_of_a_streamed_request_has_its_phases(traced: Traced) -> None:
    body = {"prompt": [SECRET, "b"], "n": 2, "max_tokens": 3, "stream_options": {"include_usage": True}}
    *_, last = chunks(traced.client, COMPLETIONS, body)
    request, beneath = split(traced.spans())
    told = dict(request.attributes or {})
    assert request.name == "text_completion"  # no model was named
    assert told["gen_ai.request.stream"] is True
    assert told["gen_ai.request.choice.count"] == 2
    assert 0 < told["gen_ai.response.time_to_first_chunk"] * 1e9 <= request.end_time - request.start_time
    assert told["gen_ai.usage.input_tokens"] == last["usage"]["prompt_tokens"]
    assert told["gen_ai.usage.output_tokens"] == last["usage"]["completion_tokens"]
    indices = [dict(span.attributes or {})["secateur.choice.index"] for span in beneath]
    assert indices == [index for index in range(4) for _ in PHASES]


def test_the_parent_is_the_one_that_traceparent_names(traced: Traced) -> None:
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace_id}-{span_id}-01"}
    traced.client.post(COMPLETIONS, json={"prompt": SECRET, "max_tokens": 1}, headers=headers)
    request, beneath = split(traced.spans())
    assert request.parent is not None
    assert (f"{request.parent.trace_id:032x}", f"{request.parent.span_id:016x}") == (trace_id, span_id)
    assert {f"{span.context.trace_id:032x}" for span in [request, *beneath]} == {trace_id}


def test_what_the_caller_does_not_sample_is_not_recorded(traced: Traced) -> None:
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}
    traced.client.post(COMPLETIONS, json={"prompt": SECRET, "max_tokens": 1}, headers=headers)
    assert traced.spans() == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"prompt": SECRET, "sparsity": 0.123}, "sparsity_not_served"),
        ({"prompt": SECRET, "temperature": "hot"}, "schema_violation"),
        ({"prompt": SECRET, "max_tokens": 10**6}, "context_length_exceeded"),
    ],
)
def test_a_refused_request_is_an_error(traced: Traced, body: dict[str, Any], code: str) -> None:
    traced.client.post(COMPLETIONS, json=body)
    request, beneath = split(traced.spans())
    assert (request.attributes or {})["error.type"] == code
    assert request.status.status_code is StatusCode.ERROR
    assert beneath == []


def test_a_client_that_leaves_is_no_error(traced: Traced) -> None:
    body = {"prompt": SECRET, "max_tokens": 10_000, "ignore_eos": True, "stream": True}
    with traced.client.stream("POST", COMPLETIONS, json=body) as response:
        next(response.iter_lines())
    request, beneath = split(traced.spans())
    assert (request.attributes or {})["gen_ai.response.finish_reasons"] == ("abort",)
    assert request.status.status_code is StatusCode.UNSET
    assert [span.name for span in beneath] == PHASES[:3]


def test_a_client_that_leaves_before_its_whole_answer_is_no_error_either(traced: Traced) -> None:
    body = json.dumps({"prompt": SECRET, "max_tokens": 10_000, "ignore_eos": True})
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    with socket.create_connection((traced.client.base_url.host, traced.client.base_url.port)) as connection:
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        while not traced.is_busy():
            time.sleep(0.002)
    request, _ = split(traced.spans())
    assert request.status.status_code is StatusCode.UNSET


def test_a_stream_that_the_server_cuts_off_is_an_error(tiny: Tiny) -> None:
    def die() -> None:
        raise RuntimeError("of old age")

    exporter = InMemorySpanExporter()
    body = {"prompt": SECRET, "max_tokens": 10_000, "ignore_eos": True, "stream": True}
    with running(tiny, tracing=Tracing(SimpleSpanProcessor(exporter))) as live, live.client() as client:
        with client.stream("POST", COMPLETIONS, json=body) as response:
            lines = response.iter_lines()
            next(lines)
            live.engine.step = die
            assert any("engine_down" in line for line in lines)
        request, beneath = split(Traced(live, client, exporter).spans())
    assert (request.attributes or {})["error.type"] == "engine_down"
    assert request.status.status_code is StatusCode.ERROR
    assert [span.name for span in beneath] == PHASES[:3]


def test_no_text_of_prompts_or_answers_is_in_any_span(traced: Traced) -> None:
    body = {
        "prompt": SECRET,
        "echo": True,
        "max_tokens": 8,
        "stop": [SECRET[::-1]],
        "logprobs": 1,
        "user": SECRET,
    }
    answer = traced.client.post(COMPLETIONS, json=body).json()["choices"][0]["text"]
    told = "".join(span.to_json() for span in traced.spans())
    assert SECRET not in told
    assert SECRET[::-1] not in told
    assert answer.removeprefix(SECRET) not in told


class Collector(ThreadingHTTPServer):
    """A stub of an OpenTelemetry collector: takes OTLP over HTTP, keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _CollectorHandler)
        self.received: list[tuple[str, str, ExportTraceServiceRequest]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _CollectorHandler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        request = ExportTraceServiceRequest.FromString(body)
        self.server.received.append((self.path, self.headers["content-type"], request))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None: ...


@contextmanager
def collecting() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            thread.join()


def test_spans_reach_a_collector_over_http_at_the_latest_when_the_server_ends(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "pruned")
        with running(tiny, tracing=open_tracing()) as live, live.client() as client:
            client.post(COMPLETIONS, json={"prompt": "abc", "max_tokens": 4})
    [(path, content_type, request)] = collector.received
    assert (path, content_type) == ("/v1/traces", "application/x-protobuf")
    [resource] = request.resource_spans
    attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert attributes["service.name"] == "pruned"
    names = {span.name for scope in resource.scope_spans for span in scope.spans}
    assert names == {"text_completion", *PHASES}


def test_a_protocol_that_the_extra_does_not_bring_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(SettingsError, match=r"grpc.*4318"):
        open_tracing()


def test_without_the_extra_the_command_says_which_one_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules, "server.monitoring.tracing", None
    )  # as if what it imports were not installed
    with pytest.raises(SettingsError, match=r"pip install 'secateur\[otel\]'"):
        serve(ServeSettings(traces=True, port=0))
