"""Contenders on the same workloads, in turn. Knows no engine; what a cell is, the caller says."""

import contextlib
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.contender import Contender
from bench.limits import Limits, limits
from bench.measure import Cell, Figures, summary
from bench.servers import Server


async def compare(contenders: Sequence[Contender], cells: Mapping[str, Cell], rounds: int) -> dict[str, Any]:
    """Every cell on every contender, `rounds` times, as JSON.

    Within a round a cell runs on all contenders before the next cell does, so that a slow minute of the
    machine is slow for all; who is first changes from round to round, and every other round goes through the
    cells backwards. All servers stay up, and the others are paused meanwhile: they keep their memory and take
    no time (`idle_cores`: the cores' time that they took).
    """
    taken: dict[str, dict[str, list[Figures]]] = defaultdict(lambda: defaultdict(list))
    resident: dict[str, int] = defaultdict(int)
    idle: dict[str, list[float]] = defaultdict(list)
    readings: list[Limits] = []
    for number in range(rounds):
        for cell_name, cell in list(cells.items())[:: -1 if number % 2 else 1]:
            first = number % len(contenders)
            for active in [*contenders[first:], *contenders[:first]]:
                others = [c for c in contenders if not set(c.clients) & set(active.clients)]
                with _paused([server for other in others for server in other.servers]):
                    before, start = [_cpu_seconds(c) for c in others], time.monotonic()
                    figures = await cell(active)
                    wall = time.monotonic() - start
                    for other, seconds in zip(others, before, strict=True):
                        idle[other.name].append((_cpu_seconds(other) - seconds) / wall)
                taken[active.name][cell_name].append(figures)
                resident[active.name] = max(
                    resident[active.name], sum(s.resident_bytes() for s in active.servers)
                )
                main_figure = next(iter(figures.items()))
                print(f"round {number + 1} {cell_name:>5} {active.name:<14} {main_figure}", file=sys.stderr)
        with _paused([server for each in contenders for server in each.servers]):
            readings.append(limits())
    return {
        "limits": readings,
        "contenders": {
            c.name: {
                "commands": [_portable(server.launch.command) for server in c.servers],
                "ready_seconds": [server.ready_seconds for server in c.servers],
                "resident_bytes": resident[c.name],
                "idle_cores": max(idle[c.name], default=0.0),
                "figures": {name: summary(values) for name, values in taken[c.name].items()},
            }
            for c in contenders
        },
    }


@contextlib.contextmanager
def _paused(servers: Sequence[Server]) -> Iterator[None]:
    for server in servers:
        server.pause()
    try:
        yield
    finally:
        for server in servers:
            server.resume()


def _cpu_seconds(contender: Contender) -> float:
    return sum(server.cpu_seconds() for server in contender.servers)


def _portable(command: Sequence[str]) -> str:
    """A command as it can be read elsewhere: without where this checkout and this home happen to lie."""
    return " ".join(command).replace(str(Path.cwd()), ".").replace(str(Path.home()), "~")
