"""A client that leaves takes its request with it: blocks back, variant free, counted as aborted."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from server.engine.async_engine import AsyncEngine
from server.engine.engine import Engine
from tests.integration.live import MAX_MODEL_LEN, Live, Tiny, running

Eventually = Callable[[Callable[[], bool]], None]

# Would run for minutes: what ends it is the disconnect.
ENDLESS = {"prompt": "a", "max_tokens": MAX_MODEL_LEN - 8, "ignore_eos": True, "temperature": 0}


@pytest.fixture
def steps_after_abort(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the steps that begin after the server has noticed that a client left, for each that does."""
    counts: list[int] = []
    forget, step = AsyncEngine._forget, Engine.step

    def counting_forget(engine: AsyncEngine, request: Any) -> None:
        forget(engine, request)
        counts.append(0)

    def counting_step(engine: Engine) -> Any:
        if counts:
            counts[-1] += 1
        return step(engine)

    monkeypatch.setattr(AsyncEngine, "_forget", counting_forget)
    monkeypatch.setattr(Engine, "step", counting_step)
    return counts


@pytest.fixture
def alone(tiny: Tiny) -> Iterator[Live]:
    with running(tiny) as live:
        yield live


def all_free(live: Live) -> bool:
    return (
        live.generations.num_open == 0
        and live.engine.num_unfinished == 0
        and live.engine.num_free_kv_blocks == live.engine.num_kv_blocks
        and not any(status.in_flight for status in live.generations.registry.offer().statuses)
    )


def aborted(live: Live) -> float:
    page = httpx.get(f"{live.url}/metrics").text
    lines = [line for line in page.splitlines() if line.startswith("secateur_requests_total{")]
    assert all(line.endswith(" 0.0") for line in lines if 'finish_reason="abort"' not in line)
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@contextmanager
def asked(live: Live, path: str, body: dict[str, Any]) -> Iterator[None]:
    """A client that has sent its request, and leaves when the block ends."""
    content = json.dumps(body).encode()
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        connection.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        yield


def test_leaving_a_stream_frees_it(alone: Live, steps_after_abort: list[int], eventually: Eventually) -> None:
    with alone.client() as client:
        body = {**ENDLESS, "stream": True, "n": 3}
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            assert alone.engine.num_free_kv_blocks < alone.engine.num_kv_blocks
        eventually(lambda: all_free(alone))
    assert aborted(alone) == 3
    # None is spent on requests that nobody waits for, but one that was about to begin.
    assert steps_after_abort[-1] <= 1


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_leaving_before_the_answer_frees_it(
    alone: Live, steps_after_abort: list[int], eventually: Eventually, path: str
) -> None:
    body: dict[str, Any] = dict(ENDLESS)
    if "chat" in path:
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
        body["max_tokens"] -= 64
    with asked(alone, path, body):
        eventually(lambda: alone.engine.num_free_kv_blocks < alone.engine.num_kv_blocks)
    eventually(lambda: all_free(alone))
    assert aborted(alone) == 1
    assert steps_after_abort[-1] <= 1


def test_leaving_while_waiting_in_the_queue_frees_the_place(alone: Live, eventually: Eventually) -> None:
    with alone.client() as client:
        crowd = {**ENDLESS, "stream": True, "n": 8}
        with client.stream("POST", "/v1/completions", json=crowd) as running_ones:
            lines = running_ones.iter_lines()
            assert next(lines).startswith("data: ")
            with asked(alone, "/v1/completions", ENDLESS):
                eventually(lambda: alone.generations.engine.num_unfinished == 9)
            eventually(lambda: alone.generations.num_open == 1)
        eventually(lambda: all_free(alone))
    assert aborted(alone) == 9
