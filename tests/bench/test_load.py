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


class Server:
    """Answers once so many wait for an answer, and ends the test after so many answers."""

    def __init__(self, together, last, status=200):
        self.together = together
        self.last = last
        self.status = status
        self.bodies = []
        self.most = 0
        self.enough = asyncio.Event()
        self._waiting = 0
        self._ready = asyncio.Event()

    async def answer(self, request):
        if request.url.path == "/v1/variants":
            states = {"m:s0": "ready", "m:s20": "degraded", "m:s30": "retiring"}
            return httpx.Response(200, json={"data": [{"id": k, "state": v} for k, v in states.items()]})
        self.bodies.append(json.loads(request.content))
        if len(self.bodies) == self.last:
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
    server = run((Phase(24, 60.0),), together=24, last=24)
    assert server.most == 24
    asked = [body["messages"][0]["content"] for body in server.bodies]
    assert sorted(asked) == sorted(f"question {i}" for i in range(24))
    assert all(body["stream"] for body in server.bodies)


def test_every_size_in_service_is_asked_for_and_some_leave_it_to_the_server():
    server = run((Phase(100, 60.0),), together=100, last=100)
    assert {body.get("model") for body in server.bodies} == {"m:s0", "m:s20", None}
    assert all(body["sparsity"] == "auto" for body in server.bodies if "model" not in body)


def test_a_refusal_does_not_end_it():
    assert len(run((Phase(3, 60.0),), together=1, last=7, status=429).bodies) >= 7


def test_a_server_that_is_gone_does():
    def refuse(request):
        raise httpx.ConnectError("Connection refused")

    async def main():
        async with httpx.AsyncClient(transport=httpx.MockTransport(refuse), base_url="http://server") as http:
            await Load(http, iter(()), PHASES, random.Random(0)).run()

    with pytest.raises(httpx.ConnectError):
        asyncio.run(main())


def test_questions_never_end_and_never_repeat():
    asked = list(itertools.islice(questions(seed=0), 120))
    assert len(set(asked)) > 110, "a few of so many may be alike"
