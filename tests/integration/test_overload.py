"""A full queue, a full KV cache and a dead engine, on a real engine."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from eval.probing.budget import TokenBucket
from server import shutdown
from server.engine import async_engine
from server.engine.errors import EngineDeadError
from server.engine.model_runner import ModelRunner
from server.judging import probing
from server.tokenization import PromptTokenizer
from tests.integration.live import MAX_MODEL_LEN, WAIT_SECONDS, Tiny, running
from tests.integration.metrics import scrape
from tests.integration.sse import chunks, events

COMPLETIONS = "/v1/completions"
ENDLESS = {"prompt": "a", "max_tokens": MAX_MODEL_LEN - 8, "ignore_eos": True}


def test_a_full_queue_is_a_429_that_says_when_to_come_back(tiny: Tiny) -> None:
    with running(tiny) as live, live.client() as client:
        most = live.generations.max_requests
        with client.stream("POST", COMPLETIONS, json={**ENDLESS, "n": most, "stream": True}) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            refused = client.post(COMPLETIONS, json={"prompt": "a"})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        assert 'secateur_rejections_total{reason="queue_full"} 1.0' in client.get("/metrics").text


def test_what_waits_is_the_load_and_holds_probes_back(
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[[Callable[[], bool]], None],
) -> None:
    """By the one "auto" leans towards smaller sizes, by the other nobody waits for a probe."""
    made: list[tuple[Callable[[], float], Callable[[], bool]]] = []

    class Recorded(TokenBucket):
        def __init__(
            self, tokens_per_second: Callable[[], float], *, blocked: Callable[[], bool], **options: Any
        ) -> None:
            made.append((tokens_per_second, blocked))
            super().__init__(tokens_per_second, blocked=blocked, **options)

    monkeypatch.setattr(probing, "TokenBucket", Recorded)
    probed = {"probe_budget": 0.02, "cache_dir": tmp_path}
    with running(tiny, max_num_seqs=1, max_waiting=4, **probed) as live, live.client() as client:
        [(rate, blocked)] = made
        assert not live.generations.metrics.workload.tokens_per_second, "nothing has been measured"
        assert rate() == 0.02 * probing.UNMEASURED_TOKENS_PER_SECOND
        with client.stream("POST", COMPLETIONS, json={**ENDLESS, "n": 3, "stream": True}) as response:
            lines = response.iter_lines()  # kept: without it the client would leave
            assert next(lines).startswith("data: ")
            eventually(lambda: live.generations.load() == 0.5)
            assert blocked()
        eventually(lambda: live.generations.load() == 0)
        assert not blocked()


def test_more_requests_than_kv_blocks_all_finish(tiny: Tiny) -> None:
    small = {"kv_cache_gib": 200 * 768 / 2**30, "max_model_len": 150, "block_size": 8}
    with running(tiny, **small) as live, live.client() as client, ThreadPoolExecutor(8) as pool:
        bodies = [
            {"prompt": f"{i}" * 20, "max_tokens": 80, "ignore_eos": True, "sparsity": (0, 0.1, 0.2)[i % 3]}
            for i in range(12)
        ]
        answers = list(pool.map(lambda body: client.post(COMPLETIONS, json=body).json(), bodies))
        assert [answer["usage"]["completion_tokens"] for answer in answers] == [80] * 12
        page = client.get("/metrics").text
        assert live.engine.num_free_kv_blocks == live.engine.num_kv_blocks
    preemptions = next(line for line in page.splitlines() if line.startswith("secateur_preemptions_total"))
    assert float(preemptions.split()[1]) > 0


def test_a_dead_engine_is_told_to_everyone(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    run = ModelRunner.run
    burning = threading.Event()

    def failing_run(runner: ModelRunner, decision: Any) -> Any:
        if burning.is_set():
            raise RuntimeError("the machine is on fire")
        return run(runner, decision)

    monkeypatch.setattr(ModelRunner, "run", failing_run)
    with running(tiny) as live, live.client() as client, ThreadPoolExecutor(2) as pool:
        streamed = pool.submit(events, client, COMPLETIONS, ENDLESS)
        whole = pool.submit(client.post, COMPLETIONS, json=ENDLESS)
        both_begun = 'secateur_time_to_first_token_seconds_count{variant="tiny:s0"} 2.0'
        eventually(lambda: both_begun in client.get("/metrics").text)
        burning.set()
        *_, last = streamed.result()
        assert last.startswith('{"error": {"message": "the engine has died')
        assert '"code": "engine_down"' in last
        assert (whole.result().status_code, whole.result().json()["error"]["code"]) == (503, "engine_down")

        late = client.post(COMPLETIONS, json=ENDLESS)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "engine_down")
        for path in ("/health", "/ready"):
            health = client.get(path)
            assert health.status_code == 503
            assert "on fire" in health.json()["reason"]
        page = client.get("/metrics").text
        assert 'secateur_rejections_total{reason="engine_down"} 3.0' in page
        assert "secateur_engine_up 0.0" in page
        assert 'secateur_requests_total{finish_reason="error",variant="tiny:s0"} 2.0' in page
        eventually(lambda: live.generations.num_open == 0)
        assert live.thread.is_alive()


def test_a_server_without_an_engine_ends_for_a_supervisor_to_start_it_anew(
    tiny: Tiny,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    eventually: Callable[[Callable[[], bool]], None],
) -> None:
    def failing_run(runner: ModelRunner, decision: Any) -> Any:
        raise RuntimeError("the machine is on fire")

    monkeypatch.setattr(ModelRunner, "run", failing_run)
    monkeypatch.setattr(shutdown, "MOURNING_SECONDS", 0.2)
    with running(tiny) as live, live.client() as client:
        told = client.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 2})
        assert told.json()["error"]["code"] == "engine_down"
        eventually(lambda: not live.thread.is_alive())
        with pytest.raises(EngineDeadError, match="on fire"):
            live.generations.engine.check_alive()
    (death,) = [record for record in caplog.records if "has died: nothing" in record.message]
    assert "at work on " in death.message, "which request it was"
    assert death.message.rstrip(".").endswith("-0-0")


def test_a_step_that_does_not_end_turns_requests_away(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    run, go_on = ModelRunner.run, threading.Event()

    def hanging_run(runner: ModelRunner, decision: Any) -> Any:
        assert go_on.wait(WAIT_SECONDS)
        return run(runner, decision)

    monkeypatch.setattr(ModelRunner, "run", hanging_run)
    monkeypatch.setattr(async_engine, "STUCK_SECONDS", 0.2)
    with running(tiny) as live, live.client() as client, ThreadPoolExecutor(1) as pool:
        assert client.get("/ready").status_code == 200
        answer = pool.submit(client.post, COMPLETIONS, json={"prompt": "a", "max_tokens": 1})
        eventually(lambda: client.get("/ready").status_code == 503)
        assert "a step of the engine has been running for" in client.get("/ready").json()["reason"]
        assert client.get("/health").status_code == 200, "it may be mended by waiting"
        assert scrape(client)["secateur_step_age_seconds", frozenset()] > 0.2
        go_on.set()
        assert answer.result().status_code == 200
        eventually(lambda: client.get("/ready").status_code == 200)


def test_more_answers_than_ever_fit_are_refused_before_they_are_tokenized(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def encode(*args: Any, **kwargs: Any) -> list[int]:
        raise AssertionError("a prompt was tokenized")

    with running(tiny) as live, live.client() as client:
        most = live.generations.max_requests
        monkeypatch.setattr(PromptTokenizer, "encode", encode)
        refused = client.post(COMPLETIONS, json={"prompt": ["a"] * (most + 1)})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_value")
        chat = {"messages": [{"role": "user", "content": "a"}], "n": most + 1}
        assert client.post("/v1/chat/completions", json=chat).json()["error"]["code"] == "invalid_value"


def test_requests_of_all_widths_at_once_get_what_they_would_get_alone(tiny: Tiny) -> None:
    bodies = [
        {"prompt": f"request {i}", "max_tokens": 24, "temperature": 0, "sparsity": (0, 0.1, 0.2)[i % 3]}
        for i in range(12)
    ]
    with running(tiny) as live, live.client() as client, ThreadPoolExecutor(12) as pool:
        alone = [chunks(client, COMPLETIONS, body) for body in bodies]
        together = list(pool.map(lambda body: chunks(client, COMPLETIONS, body), bodies))
    for first, second, body in zip(alone, together, bodies, strict=True):
        told = [
            "".join(c["text"] for chunk in answer for c in chunk["choices"]) for answer in (first, second)
        ]
        assert told[0] == told[1]
        assert first[0]["secateur"]["sparsity"] == second[0]["secateur"]["sparsity"] == body["sparsity"]
