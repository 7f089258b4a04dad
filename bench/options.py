"""What options of `secateur serve` cost or bring, such as `--deltas FILE` or `--quantization int8`.

Two servers of one model run, one of them with the options, and are asked the same in turn: W1 and W2 at each
sparsity, W3, and W4 dealt over all of them.
"""

import argparse
import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bench import measure
from bench.compare import compare
from bench.contender import contender
from bench.environment import provenance
from bench.servers import LOGS, print_result, secateur
from bench.workloads import CONCURRENCY, Workloads

WITHOUT, WITH = "without", "with"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.options", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint directory")
    parser.add_argument("--options", required=True, help='e.g. "--quantization int8", as one argument')
    parser.add_argument("--sparsities", default="0,0.2", help="with commas between (default: %(default)s)")
    parser.add_argument("--serve", default="", help='options that both have, e.g. "--task mine"')
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the numbers that make prompts differ")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    return parser.parse_args()


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that was measured, and the ratios of the medians, as JSON."""
    model = arguments.model.expanduser()
    sparsities = [float(sparsity) for sparsity in arguments.sparsities.split(",")]
    served = ["--sparsities", ",".join(map(str, sorted({0.0, *sparsities}))), "--allow-unsafe"]
    served += ["--max-num-seqs", str(CONCURRENCY), *shlex.split(arguments.serve)]
    workloads = Workloads(Tokenizer.from_file(str(model / "tokenizer.json")), arguments.seed)
    plain, changed = secateur(model, served), secateur(model, [*served, *shlex.split(arguments.options)])
    async with (
        contender(WITHOUT, [plain], workloads, LOGS) as first,
        contender(WITH, [changed], workloads, LOGS) as second,
    ):
        for each in (first, second):
            await measure.warm_up(each)
        compared = await compare([first, second], _cells(sparsities), arguments.rounds)
    return {
        **provenance(),
        "model": model.name,
        "seed": arguments.seed,
        "options": arguments.options,
        "ratios": _ratios(compared["contenders"]),
        **compared,
    }


def _cells(sparsities: list[float]) -> dict[str, measure.Cell]:
    streams: dict[str, measure.Cell] = {
        f"W1 at {s}": partial(measure.single_stream, sparsities=(s,)) for s in sparsities
    }
    batches: dict[str, measure.Cell] = {
        f"W2 at {s}": partial(measure.batch, sparsities=(s,)) for s in sparsities
    }
    mixed = partial(measure.batch, sparsities=tuple(sparsities))
    return {**streams, **batches, "W3": measure.long_prompt, "W4": mixed}


def _ratios(contenders: Mapping[str, Any]) -> dict[str, float]:
    """Of each cell's median tokens a second, with the options to without."""
    without, with_options = contenders[WITHOUT]["figures"], contenders[WITH]["figures"]
    return {cell: _speed(with_options[cell]) / _speed(figures) for cell, figures in without.items()}


def _speed(figures: Mapping[str, Any]) -> float:
    """The first figure of a cell is its speed."""
    return float(next(iter(figures.values()))["median"])


if __name__ == "__main__":
    arguments = parse_arguments()
    print_result(run(arguments), arguments.out)
