"""Servers in processes of their own: started, waited for, weighed and stopped. Knows no engine's options."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from bench.client import BenchError

_READY_TIMEOUT_SECONDS = 1800  # a first start may measure a profile, or compile
_STOP_TIMEOUT_SECONDS = 60
LOGS = Path("~/.cache/secateur/bench-logs").expanduser()  # of servers, unless told otherwise

Result = TypeVar("Result")


@dataclass(frozen=True)
class Launch:
    """How to start a server. `{port}` in the command stands for the port it shall listen on."""

    name: str
    model: str  # what requests call it
    command: Sequence[str]
    ready_path: str
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Server:
    """One that runs and is ready."""

    launch: Launch
    url: str
    pid: int
    ready_seconds: float  # from its start until it said that it was ready

    def cpu_seconds(self) -> float:
        """Processor time of its processes so far."""
        return self._sum(lambda process: sum(process.cpu_times()[:2]))  # user's and system's

    def resident_bytes(self) -> int:
        """Memory of its processes now; pages that several share count in parts (PSS)."""
        return int(self._sum(lambda process: process.memory_full_info().pss))

    def peak_bytes(self) -> int:
        """The largest resident set that its first process ever had, as the kernel keeps it (Linux)."""
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise BenchError("/proc tells no peak of the resident set")

    def pause(self) -> None:
        """Takes the processor from all its processes until `resume`."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Gives it back."""
        os.killpg(self.pid, signal.SIGCONT)

    def _sum(self, number: Callable[[psutil.Process], float]) -> float:
        """Over all its processes but those that end meanwhile."""
        first, total = psutil.Process(self.pid), 0.0
        for process in [first, *first.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += number(process)
        return total


def secateur(model: Path, options: Sequence[str]) -> Launch:
    """Ours, on a checkpoint directory. It computes what is asked, no less and no more.

    So nothing comes from a prefix cache (which the peers have switched off as well), nothing is probed, and
    text is not guessed ahead, unless `options` say so.
    """
    command = [sys.executable, "-m", "server", "serve", "--model", str(model), "--port", "{port}"]
    command += ["--no-prefix-caching", "--probe-budget", "0", "--shadow-share", "0"]
    command += ["--prompt-lookup-tokens", "0"]
    return Launch("secateur", model.name, [*command, *options], "/ready")


def run_to_end(main: Coroutine[Any, Any, Result]) -> Result:
    """`asyncio.run`, but SIGTERM cancels as SIGINT does: no server is left behind."""

    async def cancelled_by_signal() -> Result:
        task = asyncio.ensure_future(main)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await task

    return asyncio.run(cancelled_by_signal())


def run_or_exit(main: Coroutine[Any, Any, Result]) -> Result:
    """`run_to_end` of a command: what goes wrong outside of it ends the process with one line."""
    try:
        return run_to_end(main)
    except (BenchError, httpx.HTTPError, asyncio.CancelledError) as error:
        sys.exit(f"bench: {str(error) or 'ended by a signal'}")


def print_result(main: Coroutine[Any, Any, dict[str, Any]], out: Path | None) -> None:
    """Runs a measurement to its end, and prints what came of it as JSON, into `out` too where it is given."""
    text = json.dumps(run_or_exit(main), indent=1)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")
    print(text)


@contextlib.asynccontextmanager
async def running(launch: Launch, logs: Path) -> AsyncIterator[Server]:
    """Starts a server, waits until it is ready, and ends all its processes afterwards.

    Raises:
        BenchError: it ended before it was ready, or took too long. What it wrote is in a file under `logs`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{launch.name}-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [part.replace("{port}", str(port)) for part in launch.command],
            env={**os.environ, "PYTHONUNBUFFERED": "1", **launch.environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that all it starts can be ended with it
        )
    start = time.monotonic()
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient() as http:
            while not await _is_ready(http, url + launch.ready_path):
                if process.poll() is not None:
                    raise BenchError(
                        f"{launch.name} ended with {process.returncode} before it was ready: {log}"
                    )
                if time.monotonic() - start > _READY_TIMEOUT_SECONDS:
                    raise BenchError(f"{launch.name} was not ready after {_READY_TIMEOUT_SECONDS} s: {log}")
                await asyncio.sleep(0.02)
        yield Server(launch, url, process.pid, time.monotonic() - start)
    finally:
        with contextlib.suppress(ProcessLookupError):  # none of its processes is left
            os.killpg(process.pid, signal.SIGCONT)  # a paused one hears of nothing
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_TIMEOUT_SECONDS)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def _is_ready(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(url)).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
