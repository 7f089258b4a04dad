"""What deltas cost a server: the same sizes with and without them, in turn: `python -m bench.deltas`.

Two servers run, one of them with `--deltas`; there a sparsity asked for is served with its delta. W1 and W2
are asked at each sparsity, W4 dealt over the dense model and all of them.
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
from pruning.delta import load_delta

WITHOUT, WITH = "without", "with deltas"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.deltas", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint directory")
    parser.add_argument("--deltas", required=True, help="files with commas between, one of each sparsity")
    parser.add_argument("--serve", default="", help='more options of `secateur serve`, e.g. "--task mine"')
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the numbers that make prompts differ")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    return parser.parse_args()


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that was measured, and the ratios of the medians, as JSON."""
    model = arguments.model.expanduser()
    sparsities = [load_delta(Path(file)).provenance.sparsity for file in arguments.deltas.split(",")]
    options = ["--sparsities", ",".join(map(str, [0.0, *sparsities])), "--allow-unsafe"]
    options += ["--max-num-seqs", str(CONCURRENCY), *shlex.split(arguments.serve)]
    workloads = Workloads(Tokenizer.from_file(str(model / "tokenizer.json")), arguments.seed)
    plain, corrected = secateur(model, options), secateur(model, [*options, "--deltas", arguments.deltas])
    async with (
        contender(WITHOUT, [plain], workloads, LOGS) as first,
        contender(WITH, [corrected], workloads, LOGS) as second,
    ):
        for each in (first, second):
            await measure.warm_up(each)
        compared = await compare([first, second], _cells(sparsities), arguments.rounds)
    return {
        **provenance(),
        "model": model.name,
        "seed": arguments.seed,
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
    return {**streams, **batches, "W4": partial(measure.batch, sparsities=(0.0, *sparsities))}


def _ratios(contenders: Mapping[str, Any]) -> dict[str, float]:
    """Of each cell's median tokens a second, with deltas to without."""
    without, with_deltas = contenders[WITHOUT]["figures"], contenders[WITH]["figures"]
    return {cell: _speed(with_deltas[cell]) / _speed(figures) for cell, figures in without.items()}


def _speed(figures: Mapping[str, Any]) -> float:
    """The first figure of a cell is its speed."""
    return float(next(iter(figures.values()))["median"])


if __name__ == "__main__":
    arguments = parse_arguments()
    print_result(run(arguments), arguments.out)
