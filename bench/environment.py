"""What a figure was measured on, and a server to measure in a process of its own."""

import asyncio
import contextlib
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.client import BenchError

_READY_TIMEOUT_SECONDS = 1800  # a first start measures a profile
_STOP_TIMEOUT_SECONDS = 60


def provenance() -> dict[str, Any]:
    """Machine, commit and versions, as JSON."""
    cpu = platform.processor()
    with contextlib.suppress(OSError):  # only Linux tells
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), cpu)
    return {
        "machine": {
            "cpu": cpu,
            "cores": psutil.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "system": platform.platform(),
        },
        "commit": _git("describe", "--always", "--dirty", "--abbrev=12"),
        "versions": {
            "python": platform.python_version(),
            **{n: version(n) for n in ("torch", "transformers")},
        },
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _git(*arguments: str) -> str:
    ran = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return ran.stdout.strip() or "unknown"


class MemoryWatch:
    """The peak of a process tree's resident set, sampled twice a second."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.peak_bytes = 0

    async def run(self) -> None:
        while True:
            with contextlib.suppress(psutil.NoSuchProcess):
                tree = [self._process, *self._process.children(recursive=True)]
                self.peak_bytes = max(self.peak_bytes, sum(p.memory_info().rss for p in tree))
            await asyncio.sleep(0.5)


@contextlib.asynccontextmanager
async def served(arguments: list[str]) -> AsyncIterator[tuple[str, int, float]]:
    """Runs `secateur serve` with `arguments`. Yields its URL, process id and the seconds until it was ready.

    Raises:
        BenchError: it ended before it was ready, or took too long.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "server", "serve", "--port", str(port), *arguments]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    start = time.monotonic()
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient() as http:
            while not await _is_ready(http, url):
                if process.poll() is not None:
                    raise BenchError(f"the server ended with code {process.returncode} before it was ready")
                if time.monotonic() - start > _READY_TIMEOUT_SECONDS:
                    raise BenchError(f"the server was not ready after {_READY_TIMEOUT_SECONDS} seconds")
                await asyncio.sleep(0.1)
        yield url, process.pid, time.monotonic() - start
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


async def _is_ready(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(f"{url}/ready")).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
