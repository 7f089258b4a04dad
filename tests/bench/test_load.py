"""Made-up users come and go in phases, and ask every size that is served."""

import asyncio
import itertools
import json
import random

import httpx
import pytest

from bench.demo import questions
from bench.load import Load, Phase, users_at

PHASES = (Phase(2, 10.0), Phase(6, 5.0), Phase(32, 1.0))


@pytest.mark.parametrize(
    ("elapsed", "users"),
    [(0.0, 2), (9.9, 2), (10.0, 6), (14.9, 6), (15.0, 32), (16.0, 2), (26.5, 6), (31.9, 32)],
)
def test_phases_come_round(elapsed, users):
    assert users_at(elapsed, PHASES) == users


@pytest.fixture(autouse=True)
def short_ticks(monkeypatch):
    """A look at the sizes every tick."""
    monkeypatch.setattr("bench.load.TICK_SECONDS", 0.001)
    monkeypatch.setattr("bench.load.REFRESH_SECONDS", 0.001)


class Server:
    """Answers once so many wait for it; it is `enough` after so many questions, or looks at the sizes."""

    def __init__(self, together, questions=None, looks=None, status=200):
        self.together = together
        self.questions = questions
        self.looks = looks
        self.status = status
        self.looked = 0
        self.bodies = []
        self.most = 0
        self.enough = asyncio.Event()
        self._waiting = 0
        self._ready = asyncio.Event()

    async def answer(self, request):
        if request.url.path == "/v1/variants":
            self.looked += 1
            if self.looked == self.looks:
                self.enough.set()
            states = {"m:s0": "ready", "m:s20": "degraded", "m:s30": "retiring"}
            return httpx.Response(200, json={"data": [{"id": k, "state": v} for k, v in states.items()]})
        self.bodies.append(json.loads(request.content))
        if len(self.bodies) == self.questions:
            self.enough.set()
        self._waiting += 1
        self.most = max(self.most, self._waiting)
        if self._waiting == self.together:
            self._ready.set()
        await self._ready.wait()
        self._waiting -= 1
        return httpx.Response(self.status)


def run(phases, **server):
    async def main():
        fake = Server(**server)
        transport = httpx.MockTransport(fake.answer)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
            load = Load(http, (f"question {i}" for i in itertools.count()), phases, random.Random(0))
            running = asyncio.create_task(load.run())
            await asyncio.wait(
                {running, asyncio.create_task(fake.enough.wait())}, return_when="FIRST_COMPLETED"
            )
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert running.cancelled()
            assert len(asyncio.all_tasks()) == 1, "no user is left"
        return fake

    return asyncio.run(main())


def test_as_many_ask_at_once_as_the_phase_has_users_and_each_asks_something_else():
    server = run((Phase(24, 60.0),), together=25, questions=24)
    assert server.most == 24
    asked = [body["messages"][0]["content"] for body in server.bodies]
    assert sorted(asked) == sorted(f"question {i}" for i in range(24))
    assert all(body["stream"] for body in server.bodies)


def test_nobody_joins_while_all_are_waiting_and_nobody_is_left_behind():
    server = run((Phase(5, 60.0),), together=6, looks=20)
    assert len(server.bodies) == 5


def test_every_size_in_service_is_asked_for_and_some_leave_it_to_the_server():
    server = run((Phase(100, 60.0),), together=101, questions=100)
    assert {body.get("model") for body in server.bodies} == {"m:s0", "m:s20", None}
    assert all(body["sparsity"] == "auto" for body in server.bodies if "model" not in body)


def test_a_refusal_does_not_end_it():
    assert len(run((Phase(3, 60.0),), together=1, questions=7, status=429).bodies) >= 7


@pytest.mark.parametrize("path", ["/v1/variants", "/v1/chat/completions"])
def test_a_server_that_is_gone_does(path):
    def refuse(request):
        if request.url.path == path:
            raise httpx.ConnectError("Connection refused")
        return httpx.Response(200, json={"data": [{"id": "m:s0", "state": "ready"}]})

    async def main():
        async with httpx.AsyncClient(transport=httpx.MockTransport(refuse), base_url="http://server") as http:
            await Load(http, itertools.repeat("why?"), PHASES, random.Random(0)).run()

    with pytest.raises(httpx.ConnectError):
        asyncio.run(main())


def test_questions_never_end_and_never_repeat():
    asked = list(itertools.islice(questions(seed=0), 120))
    assert len(set(asked)) > 110, "a few of so many may be alike"
