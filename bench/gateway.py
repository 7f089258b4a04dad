"""What the server's own metrics and threads say about a workload, beside what its clients saw."""

import time

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from bench.contender import Contender
from bench.environment import num_cores
from bench.measure import Cell, Figures


async def sample(url: str, name: str) -> float:
    """A metric's value, summed over its labels."""
    async with httpx.AsyncClient() as http:
        page = (await http.get(f"{url}/metrics")).text
    families = text_string_to_metric_families(page)
    return sum(s.value for family in families for s in family.samples if s.name == name)


async def watched(contender: Contender, cell: Cell) -> Figures:
    """A cell's figures, and what the gateway around the engine took of its time.

    `outside_steps_ratio` is the share of the cell's wall time in which no engine step ran, though a request
    was there: requests parsed and tokenised before the first step, outputs handed over between steps, the
    last tokens on their way out. While steps run, the event loop's thread (HTTP, text, server-sent events)
    takes turns with them on the same cores: `event_loop_ratio` is its processor time over that of all cores.
    `gateway_ratio` is the sum of both.
    """
    [server] = contender.servers
    steps = await sample(server.url, "secateur_step_seconds_sum")
    loop, start = _main_thread_seconds(server.pid), time.monotonic()
    figures = await cell(contender)
    wall, loop = time.monotonic() - start, _main_thread_seconds(server.pid) - loop
    steps = await sample(server.url, "secateur_step_seconds_sum") - steps
    outside, share = 1 - steps / figures["wall_seconds"], loop / wall / num_cores()
    return {
        **figures,
        "outside_steps_ratio": outside,
        "event_loop_ratio": share,
        "gateway_ratio": outside + share,
    }


def _main_thread_seconds(pid: int) -> float:
    """Processor time of a process's first thread, the event loop's; to a hundredth of a second."""
    [first] = [thread for thread in psutil.Process(pid).threads() if thread.id == pid]
    return first.user_time + first.system_time
