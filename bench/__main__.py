"""`python -m bench`: starts a server (or takes one that runs), measures W1 to W4, prints JSON."""

import argparse
import asyncio
import contextlib
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import httpx
from tokenizers import Tokenizer

from bench.client import BenchError, Client
from bench.environment import MemoryWatch, provenance, served
from bench.measure import measure
from bench.workloads import CONCURRENCY, Workloads

DEFAULT_MODEL = "~/.cache/reference-models/coder-0.5b"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure W1 (one stream), W2 (32 at once), W3 (long prompt), W4 (mixed sparsities).",
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="checkpoint directory (default: %(default)s)")
    parser.add_argument("--url", help="measure a server that runs already instead of starting one")
    parser.add_argument("--name", help="the model's name there (default: the directory's)")
    parser.add_argument("--work", default="1,2,3,4", help="workloads to run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (default: %(default)s)")
    parser.add_argument("--sparsities", default="0,0.1,0.2,0.35", help="of W4 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the numbers that make prompts differ")
    parser.add_argument("--serve", default="", help='more options of `secateur serve`, e.g. "--score wanda"')
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    return parser.parse_args(argv)


async def run(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that was measured, as JSON."""
    directory = Path(args.model).expanduser()
    tokenizer_file = directory / "tokenizer.json"
    if not tokenizer_file.exists():
        raise BenchError(f"{tokenizer_file} does not exist: --model must be a checkpoint directory")
    sparsities = [float(s) for s in args.sparsities.split(",")]
    work = [int(w) for w in args.work.split(",")]
    options = ["--sparsities", args.sparsities, "--allow-unsafe"]
    options += ["--max-num-seqs", str(CONCURRENCY), *shlex.split(args.serve)]
    result: dict[str, Any] = {**provenance(), "model": directory.name, "seed": args.seed}

    async with contextlib.AsyncExitStack() as stack:
        watch = None
        url = args.url
        if url is None:
            url, pid, ready_seconds = await stack.enter_async_context(
                served(["--model", str(directory), *options])
            )
            result |= {"serve": shlex.join(options), "ready_seconds": ready_seconds}
            watch = MemoryWatch(pid)
            watching = asyncio.create_task(watch.run())
            stack.callback(watching.cancel)
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=None))
        workloads = Workloads(Tokenizer.from_file(str(tokenizer_file)), args.seed)
        client = Client(http, args.name or directory.name)
        result["figures"] = await measure(
            client, workloads, work=work, rounds=args.rounds, sparsities=sparsities
        )
        if watch is not None:
            result["peak_resident_bytes"] = watch.peak_bytes
    return result


def main() -> None:
    args = parse_arguments()
    try:
        result = asyncio.run(run(args))
    except BenchError as error:
        sys.exit(f"bench: {error}")
    text = json.dumps(result, indent=1)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
