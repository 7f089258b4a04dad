"""`python -m bench.peers`: Secateur and other engines in one run, phase by phase, one JSON file for each."""

import argparse
import contextlib
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bench import measure
from bench.compare import compare
from bench.contender import Contender, contender
from bench.environment import provenance, results_directory
from bench.peers.engines import ENGINES, GUESSED_TOKENS, MAX_MODEL_LEN, MAX_NUM_SEQS
from bench.peers.setup import Peers
from bench.servers import run_or_exit, secateur
from bench.workloads import Workloads

MIXED = (0.0, 0.1, 0.2, 0.35)
LEVELS = (1, 2, 4, 8, 16, 32, 64, 128)
CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192)
CURVE_NEW_TOKENS = 32
PHASES = ("setup", "w123", "lookup", "w4", "growth", "context")


@dataclass(frozen=True)
class Plan:
    """What all phases have in common."""

    peers: Peers
    engines: tuple[str, ...]
    model: Path
    task: str
    serve: tuple[str, ...]
    rounds: int
    seed: int
    out: Path

    def workloads(self) -> Workloads:
        """The same requests for each contender that gets its own."""
        return Workloads(Tokenizer.from_file(str(self.model / "tokenizer.json")), self.seed)

    def ours(self, lookup: bool = False) -> contextlib.AbstractAsyncContextManager[Contender]:
        options = ["--task", self.task, "--sparsities", ",".join(map(str, MIXED)), "--allow-unsafe"]
        options += ["--max-num-seqs", str(MAX_NUM_SEQS), "--max-model-len", str(MAX_MODEL_LEN), *self.serve]
        options += ["--prompt-lookup-tokens", str(GUESSED_TOKENS + 1)] if lookup else []
        return contender("secateur", [secateur(self.model, options)], self.workloads(), self._logs)

    def theirs(self, engine: str, lookup: bool) -> contextlib.AbstractAsyncContextManager[Contender]:
        launch = ENGINES[engine](self.peers, self.model, lookup)
        return contender(engine, [launch], self.workloads(), self._logs)

    def four(self, engine: str) -> contextlib.AbstractAsyncContextManager[Contender]:
        """A server for each of W4's sparsities, on an exported checkpoint; they share the cores."""
        exports = [self.peers.export(self.model, sparsity, self.task) for sparsity in MIXED]
        launches = [ENGINES[engine](self.peers, export, False) for export in exports]
        return contender(f"4 x {engine}", launches, self.workloads(), self._logs)

    @property
    def _logs(self) -> Path:
        return self.peers.directory / "logs"


async def run_phase(phase: str, plan: Plan) -> None:
    """Measures a phase and writes what came of it."""
    if phase == "setup":
        for sparsity in MIXED:
            checkpoint = plan.peers.export(plan.model, sparsity, plan.task)
            if "openvino" in plan.engines:
                plan.peers.openvino_model(checkpoint)
    elif phase == "w4":
        for engine in plan.engines:  # one after the other: all eight servers do not fit into memory
            _write(plan, f"w4-{engine}", await _mixed(plan, engine))
    else:
        _write(plan, phase, await _one_server_each(plan, CELLS[phase], lookup=phase == "lookup"))


async def _one_server_each(plan: Plan, cells: Mapping[str, measure.Cell], lookup: bool) -> dict[str, Any]:
    async with contextlib.AsyncExitStack() as stack:
        starts = [plan.ours(lookup), *(plan.theirs(engine, lookup) for engine in plan.engines)]
        contenders = [await stack.enter_async_context(start) for start in starts]
        for each in contenders:
            await measure.warm_up(each)
        return await compare(contenders, cells, plan.rounds)


async def _mixed(plan: Plan, engine: str) -> dict[str, Any]:
    async with plan.four(engine) as four, plan.ours() as ours:
        contenders = [
            replace(ours, sparsities=MIXED),
            replace(ours, name="secateur, dense", sparsities=(0.0,)),
            four,
        ]
        for each in (ours, four):
            await measure.warm_up(each)
        return await compare(contenders, {"W4": measure.batch}, plan.rounds)


CELLS: dict[str, dict[str, measure.Cell]] = {
    "w123": {"W1": measure.single_stream, "W2": measure.batch, "W3": measure.long_prompt},
    "lookup": {"W1": measure.single_stream},
    "growth": {
        str(count): partial(measure.batch, count=count, new_tokens=2 * CURVE_NEW_TOKENS) for count in LEVELS
    },
    "context": {
        str(num_tokens): partial(measure.long_prompt, num_tokens=num_tokens, new_tokens=CURVE_NEW_TOKENS)
        for num_tokens in CONTEXTS
    },
}


def _write(plan: Plan, name: str, result: Mapping[str, Any]) -> None:
    versions = {engine: plan.peers.install(engine) for engine in plan.engines}
    document = {**provenance(), "model": plan.model.name, "seed": plan.seed, "peers": versions, **result}
    plan.out.mkdir(parents=True, exist_ok=True)
    file = plan.out / f"peers-{name}.json"
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"bench: wrote {file}", file=sys.stderr)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument(
        "--directory", type=Path, default=Path("~/.cache/secateur/peers"), help="where the peers are set up"
    )
    parser.add_argument("--phases", default=",".join(PHASES), help="default: %(default)s")
    parser.add_argument("--peers", default=",".join(ENGINES), help="default: %(default)s")
    parser.add_argument("--model", type=Path, default=Path("~/.cache/reference-models/coder-0.5b"))
    parser.add_argument(
        "--task", default="arithmetic", help="whose profile ranks the neurons (default: %(default)s)"
    )
    parser.add_argument("--serve", default="", help="more options of `secateur serve`")
    parser.add_argument("--rounds", type=int, default=5, help="of each phase (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the numbers that make prompts differ")
    parser.add_argument(
        "--out",
        type=Path,
        default=results_directory(),
        help="directory of the JSON (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    for given, known in ((arguments.phases, PHASES), (arguments.peers, ENGINES)):
        if unknown := [name for name in given.split(",") if name not in known]:
            parser.error(f"{unknown[0]!r} is none of {', '.join(known)}")
    return arguments


async def run(arguments: argparse.Namespace) -> None:
    plan = Plan(
        peers=Peers(arguments.directory.expanduser()),
        engines=tuple(arguments.peers.split(",")),
        model=arguments.model.expanduser(),
        task=arguments.task,
        serve=tuple(shlex.split(arguments.serve)),
        rounds=arguments.rounds,
        seed=arguments.seed,
        out=arguments.out,
    )
    for engine in plan.engines:
        plan.peers.install(engine)
    for phase in arguments.phases.split(","):
        await run_phase(phase, plan)


def main() -> None:
    run_or_exit(run(parse_arguments()))


if __name__ == "__main__":
    main()
