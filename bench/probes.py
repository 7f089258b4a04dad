"""`python -m bench.probes`: what users pay for probes. W2 with them against W2 without, in one run.

A probe's items come in lots, so each figure is the mean over several W2 in a row; look at the spread as well.
"""

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

from tokenizers import Tokenizer

from bench import measure
from bench.compare import compare
from bench.contender import Contender, contender
from bench.environment import provenance
from bench.gateway import sample
from bench.servers import LOGS, print_result, secateur
from bench.targets import NOT_PROBED, PROBED
from bench.workloads import CONCURRENCY, Workloads

REPEATS = 6  # of W2 in a row, for one figure


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.probes", description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("~/.cache/reference-models/coder-0.5b"))
    parser.add_argument("--budget", type=float, default=0.02, help="of the probes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of each (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    arguments = parser.parse_args()
    print_result(run(arguments), arguments.out)


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that was measured, as JSON. Raises BenchError where a server fails."""
    model = arguments.model.expanduser()
    workloads = Workloads(Tokenizer.from_file(str(model / "tokenizer.json")), seed=0)
    options = ["--sparsities", "0,0.1,0.2,0.35", "--allow-unsafe", "--max-num-seqs", str(CONCURRENCY)]
    plain = secateur(model, options)
    probed = secateur(model, [*options, "--probe-budget", str(arguments.budget)])
    async with (
        contender(NOT_PROBED, [plain], workloads, LOGS) as without,
        contender(PROBED, [probed], workloads, LOGS) as with_probes,
    ):
        compared = await compare([without, with_probes], {"W2": _batches}, arguments.rounds)
    return {**provenance(), "model": model.name, "budget": arguments.budget, **compared}


async def _batches(c: Contender) -> measure.Figures:
    """Mean figures, and the share of the tokens computed meanwhile that was the server's own.

    The first W2 does not count: it warms up, and spends what the probes saved while the server was paused.
    """
    [server] = c.servers
    await measure.batch(c, (0.0,))
    before = await sample(server.url, "secateur_background_tokens_total")
    figures = [await measure.batch(c, (0.0,)) for _ in range(REPEATS)]
    background = await sample(server.url, "secateur_background_tokens_total") - before
    means = {name: fmean(each[name] for each in figures) for name in figures[0]}
    users = sum(each["prompt_tokens"] + each["output_tokens"] for each in figures)
    return {**means, "background_share": background / (background + users)}


if __name__ == "__main__":
    main()
