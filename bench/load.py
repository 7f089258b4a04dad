"""Made-up users: chats at every size that is served, streamed, more of them at some times than at others."""

import asyncio
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

TICK_SECONDS = 0.1
REFRESH_SECONDS = 2.0
AUTO_SHARE = 0.1  # of the questions that leave the size to the server
MAX_TOKENS = 128


@dataclass(frozen=True)
class Phase:
    """So many users at once, for so long."""

    users: int
    seconds: float


def users_at(elapsed: float, phases: Sequence[Phase]) -> int:
    """How many there are `elapsed` seconds after the start; the phases come round again and again."""
    left = elapsed % sum(phase.seconds for phase in phases)
    for phase in phases:
        if left < phase.seconds:
            return phase.users
        left -= phase.seconds
    return phases[-1].users  # a rounding error beyond the end


class Load:
    """Keeps a server busy until it is cancelled.

    A refusal is an answer like any other: sizes come and go while this runs, and a queue may be full.

    Args:
        http: whose base URL is the server's.
        questions: endless.
        rng: picks the size of each.
    """

    def __init__(
        self, http: httpx.AsyncClient, questions: Iterator[str], phases: Sequence[Phase], rng: random.Random
    ) -> None:
        self._http = http
        self._questions = questions
        self._phases = phases
        self._rng = rng

    async def run(self) -> None:
        """Raises httpx.HTTPError once the server is gone."""
        users: set[asyncio.Task[None]] = set()
        start = time.monotonic()
        try:
            for tick in itertools.count():
                if tick % round(REFRESH_SECONDS / TICK_SECONDS) == 0:
                    sizes = await self._sizes()
                for _ in range(users_at(time.monotonic() - start, self._phases) - len(users)):
                    users.add(asyncio.create_task(self._ask(self._pick(sizes))))
                await asyncio.sleep(TICK_SECONDS)
                ended = {user for user in users if user.done()}
                for user in ended:
                    user.result()
                users -= ended
        finally:
            for user in users:
                user.cancel()
            await asyncio.gather(*users, return_exceptions=True)

    def _pick(self, sizes: Sequence[str]) -> dict[str, Any]:
        chosen = {"model": self._rng.choice(sizes)}
        return {"sparsity": "auto"} if self._rng.random() < AUTO_SHARE else chosen

    async def _sizes(self) -> list[str]:
        """Names of the variants that take requests."""
        listed = (await self._http.get("/v1/variants")).raise_for_status().json()
        return [variant["id"] for variant in listed["data"] if variant["state"] != "retiring"]

    async def _ask(self, choice: dict[str, Any]) -> None:
        message = {"role": "user", "content": next(self._questions)}
        body = {"messages": [message], "max_tokens": MAX_TOKENS, "temperature": 0, "stream": True, **choice}
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            async for _ in response.aiter_bytes():
                pass
