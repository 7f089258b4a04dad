"""Who is measured: one or several servers, running, and what they are asked."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.client import Client
from bench.servers import Launch, Server, running
from bench.workloads import Workloads


@dataclass(frozen=True)
class Contender:
    """One or several servers that share a workload's requests."""

    name: str
    servers: Sequence[Server]
    clients: Sequence[Client]
    workloads: Workloads
    sparsities: Sequence[float] = ()  # of its batches, where a cell names none


@contextlib.asynccontextmanager
async def contender(
    name: str, launches: Sequence[Launch], workloads: Workloads, logs: Path
) -> AsyncIterator[Contender]:
    """Starts the servers one after the other, so that no start makes another slower or runs out of memory."""
    async with contextlib.AsyncExitStack() as stack:
        servers, clients = [], []
        for launch in launches:
            server = await stack.enter_async_context(running(launch, logs))
            http = httpx.AsyncClient(base_url=server.url, timeout=None, limits=httpx.Limits())
            await stack.enter_async_context(http)
            servers.append(server)
            clients.append(Client(http, launch.model))
        yield Contender(name, servers, clients, workloads)
