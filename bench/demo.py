"""`make demo`: the embedded model at six sizes, with probes and made-up users, and where to watch it.

In a terminal `secateur top` shows it at once. Ctrl-C, or q there, ends everything that was started.
"""

import argparse
import asyncio
import contextlib
import itertools
import random
import shlex
import sys
from collections.abc import Coroutine, Iterator
from typing import Any

import httpx

from bench.load import Load, Phase
from bench.servers import LOGS, Launch, run_or_exit, running
from eval.tasks.arithmetic import ArithmeticTask

# The last two are sparser than the model bears: probes find that out while one watches.
SPARSITIES = "0,0.1,0.2,0.3,0.5,0.6"
# Few may run at once, so that a burst of users has to queue.
OPTIONS = ["--max-num-seqs", "8", "--probe-budget", "0.25", "--allow-unsafe", "--on-degraded", "fallback"]
PHASES = (Phase(users=2, seconds=12), Phase(users=6, seconds=8), Phase(users=32, seconds=6))
QUESTIONS_AT_ONCE = 10  # a few milliseconds of the event loop
NO_LIMITS = httpx.Limits(max_connections=None)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.demo", description=__doc__)
    parser.add_argument("--serve", default="", help='more options of `secateur serve`, e.g. "--threads 1"')
    parser.add_argument("--seed", type=int, default=0, help="of questions and sizes (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if any(option.partition("=")[0] == "--port" for option in shlex.split(arguments.serve)):
        parser.error("--serve: the demo takes a free port and prints its address; --port is not for it")
    return arguments


async def demo(arguments: argparse.Namespace) -> None:
    """Runs until the user ends it.

    Raises:
        BenchError: the server did not start.
        httpx.HTTPError: it is gone.
    """
    print("starting the server; for the first time this measures what each neuron is worth", flush=True)
    command = [sys.executable, "-m", "server", "serve", "--port", "{port}", "--sparsities", SPARSITIES]
    launch = Launch("demo", "", [*command, *OPTIONS, *shlex.split(arguments.serve)], "/ready")
    async with running(launch, LOGS) as server:
        print(
            f"\n  console  {server.url}/\n  metrics  {server.url}/metrics\n"
            f"  terminal secateur top --url {server.url}\n\nCtrl-C ends everything",
            flush=True,
        )
        async with httpx.AsyncClient(base_url=server.url, timeout=None, limits=NO_LIMITS) as http:
            load = Load(http, questions(arguments.seed), PHASES, random.Random(arguments.seed))
            await _first_to_end(load.run(), _watch(server.url))


def questions(seed: int) -> Iterator[str]:
    """Arithmetic problems, none of those that probes ask."""
    for chunk in itertools.count(seed):
        yield from (item.prompt for item in ArithmeticTask().calibration(QUESTIONS_AT_ONCE, chunk))


async def _watch(url: str) -> None:
    """Ends when the user does not want to watch any more; where there is no terminal, never."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        await asyncio.Event().wait()
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "server", "top", "--url", url)
    try:
        await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def _first_to_end(*works: Coroutine[Any, Any, None]) -> None:
    """Cancels the others, and raises what it raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        run_or_exit(demo(parse_arguments()))


if __name__ == "__main__":
    main()
