"""`python -m bench`: starts a server and measures it alone: W1 to W4, what pruning brings, what it holds."""

import argparse
import shlex
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from tokenizers import Tokenizer

from bench import measure
from bench.client import BenchError
from bench.compare import compare
from bench.contender import contender
from bench.costs import Geometry
from bench.environment import provenance
from bench.gateway import sample, watched
from bench.servers import LOGS, Launch, Server, print_result, running, secateur
from bench.workloads import CONCURRENCY, Workloads

DEFAULT_MODEL = Path("~/.cache/reference-models/coder-0.5b")
MIXED = (0.0, 0.1, 0.2, 0.35)  # of W4
PRUNED = (0.1, 0.2, 0.3, 0.4, 0.5)  # W1 and W2 at each, beside the dense model
ADDED = tuple(round(0.015 + 0.02 * i, 3) for i in range(20))  # variants that are served beside those
STARTS = 3


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="directory (default: %(default)s)")
    parser.add_argument(
        "--task", default="arithmetic", help="whose profile ranks the neurons (default: %(default)s)"
    )
    parser.add_argument("--serve", default="", help='more options of `secateur serve`, e.g. "--score wanda"')
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (default: %(default)s)")
    parser.add_argument("--only", default="", help="workloads whose name begins with this, such as W1")
    parser.add_argument("--seed", type=int, default=0, help="of the numbers that make prompts differ")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    return parser.parse_args(argv)


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that was measured, as JSON.

    Raises:
        BenchError: there is no such checkpoint, or the server failed.
    """
    model = arguments.model.expanduser()
    if not (model / "tokenizer.json").exists():
        raise BenchError(f"{model}/tokenizer.json does not exist: --model must be a checkpoint directory")
    options = ["--task", arguments.task, "--sparsities", ",".join(map(str, sorted({*MIXED, *PRUNED})))]
    options += ["--allow-unsafe", "--max-num-seqs", str(CONCURRENCY), *shlex.split(arguments.serve)]
    launch = secateur(model, options)
    workloads = Workloads(Tokenizer.from_file(str(model / "tokenizer.json")), arguments.seed)
    cells = {name: cell for name, cell in _cells().items() if name.startswith(arguments.only)}
    result = {
        **provenance(),
        "model": model.name,
        "geometry": asdict(Geometry.read(model)),
        "seed": arguments.seed,
        "ready_seconds": measure.summary([{"ready_seconds": await _start(launch)} for _ in range(STARTS)]),
    }
    async with contender("secateur", [launch], workloads, LOGS) as ours:
        [server] = ours.servers
        result["memory"] = {
            "weight_bytes": await sample(server.url, "secateur_weight_bytes"),
            "kv_bytes": await sample(server.url, "secateur_kv_bytes"),
            "peak_bytes_when_ready": server.peak_bytes(),
        }
        await measure.warm_up(ours)
        result |= await compare([ours], cells, arguments.rounds)
        result["memory"]["peak_bytes"] = server.peak_bytes()
        result["variants"] = await _variants(server)
        result["adding"] = await _adding(server)
    guessing = secateur(model, [*options, "--prompt-lookup-tokens", "12"])
    async with contender("secateur, prompt lookup", [guessing], workloads, LOGS) as ours:
        await measure.warm_up(ours)
        compared = await compare([ours], {"W1": _stream(0.0)}, arguments.rounds)
        result["contenders"] |= compared["contenders"]
    return result


def _cells() -> dict[str, measure.Cell]:
    """A workload's pruned cells follow the dense one at once, so that their ratio is of one minute."""
    streams: dict[str, measure.Cell] = {f"W1 at {s}": _stream(s) for s in PRUNED}
    batches: dict[str, measure.Cell] = {f"W2 at {s}": _batch(s) for s in PRUNED}
    return {
        "W1": _stream(0.0),
        **streams,
        "W2": _batch(0.0),
        **batches,
        "W4": _batch(*MIXED),
        "W3": measure.long_prompt,
    }


def _stream(sparsity: float) -> measure.Cell:
    return partial(measure.single_stream, sparsities=(sparsity,))


def _batch(*sparsities: float) -> measure.Cell:
    return partial(watched, cell=partial(measure.batch, sparsities=sparsities))


async def _start(launch: Launch) -> float:
    async with running(launch, LOGS) as server:
        return server.ready_seconds


async def _variants(server: Server) -> dict[str, float]:
    """Sparsity asked for -> exact, of all that are served."""
    async with httpx.AsyncClient(base_url=server.url) as http:
        variants = (await http.get("/v1/variants")).json()["data"]
    return {str(v["sparsity"]): v["exact_sparsity"] for v in variants}


async def _adding(server: Server) -> dict[str, Any]:
    """Seconds that adding a variant over HTTP takes, and what it takes of memory."""
    seconds = []
    weights = await sample(server.url, "secateur_weight_bytes")
    resident = server.resident_bytes()
    async with httpx.AsyncClient(base_url=server.url, timeout=None) as http:
        await http.get("/ready")  # a connection that stands, as a client's would
        for sparsity in ADDED:
            start = time.monotonic()
            (await http.post("/admin/variants", json={"sparsity": sparsity})).raise_for_status()
            seconds.append(time.monotonic() - start)
    return {
        "seconds": measure.spread(seconds),
        "weight_bytes": await sample(server.url, "secateur_weight_bytes") - weights,
        "resident_bytes_each": (server.resident_bytes() - resident) / len(ADDED),
    }


def main() -> None:
    arguments = parse_arguments()
    print_result(run(arguments), arguments.out)


if __name__ == "__main__":
    main()
