"""A full queue, a full KV cache and a dead engine, on a real engine."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from server.engine.model_runner import ModelRunner
from tests.integration.live import MAX_MODEL_LEN, Tiny, running
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
