"""`python -m bench.observing`: what watching costs: a scrape of /metrics, and W2 with metrics and without.

The page is scraped over HTTP, from a server that has served many requests of twelve variants. W2 runs on an
engine in this process, so that both sides differ in nothing but whether the server's own `Metrics` is told.
What HTTP and its handlers count besides, once a request, is left out.
"""

import argparse
import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from tokenizers import Tokenizer

from bench.environment import provenance
from bench.limits import limits
from bench.measure import Figures, spread, summary
from bench.servers import LOGS, print_result, running, secateur
from bench.targets import WITH_METRICS, WITHOUT_METRICS
from bench.workloads import CONCURRENCY, NEW_TOKENS, Workloads
from pruning.checkpoints.checkpoint import open_checkpoint
from pruning.ranking.ranking import unranked
from server.engine.async_engine import AsyncEngine
from server.engine.request import RequestStats, SamplingParams
from server.engine.stats import EngineObserver, StepStats
from server.engine.variant import Variant
from server.judging.local import Unobserved
from server.loading.profiles import EMBEDDED_MODELS
from server.loading.sizes import engine_config, load_sizes
from server.monitoring.metrics import Metrics
from server.settings import ServeSettings, load_settings

DEFAULT_MODEL = Path("~/.cache/reference-models/coder-0.5b")
SPARSITIES = tuple(round(0.04 * number, 2) for number in range(12))
SCRAPES = 50


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.observing", description=__doc__)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="of W2 (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=10_000, help="before scraping (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=11, help="of W2 (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    arguments = parser.parse_args()
    print_result(run(arguments), arguments.out)


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that was measured, as JSON. Raises BenchError where a server fails."""
    return {
        **provenance(),
        "limits": [limits()],
        "scraping": await scraping(arguments.requests),
        **await watching(arguments.model.expanduser(), arguments.rounds),
    }


async def scraping(num_requests: int) -> dict[str, Any]:
    """Seconds and bytes of a scrape after `num_requests` short requests, dealt to twelve variants.

    Server and client share the machine, and nothing else runs meanwhile.
    """
    options = ["--sparsities", ",".join(map(str, SPARSITIES)), "--allow-unsafe"]
    async with (
        running(secateur(EMBEDDED_MODELS / "math-mini", options), LOGS) as server,
        httpx.AsyncClient(base_url=server.url, timeout=None) as http,
    ):
        numbers = iter(range(num_requests))

        async def ask_one_after_the_other() -> None:
            for number in numbers:
                sparsity = SPARSITIES[number % len(SPARSITIES)]
                body = {"prompt": "7 and 5 are", "max_tokens": 4, "sparsity": sparsity}
                (await http.post("/v1/completions", json=body)).raise_for_status()

        await asyncio.gather(*(ask_one_after_the_other() for _ in range(CONCURRENCY)))
        seconds, page = [], ""
        for _ in range(SCRAPES):
            start = time.monotonic()
            page = (await http.get("/metrics")).text
            seconds.append(time.monotonic() - start)
    return {
        "requests": num_requests,
        "variants": len(SPARSITIES),
        "series": sum(not line.startswith("#") for line in page.splitlines()),
        "bytes": len(page.encode()),
        "seconds": spread(seconds),
    }


class Timed:
    """Tells another observer, and adds up what that takes: on each of the two threads that tell."""

    def __init__(self, observer: EngineObserver) -> None:
        self._observer = observer
        self._seconds: dict[int, float] = {}

    @property
    def seconds(self) -> float:
        return sum(self._seconds.values())

    def step(self, stats: StepStats) -> None:
        start = time.perf_counter()
        self._observer.step(stats)
        self._add(start)

    def tokens(self, variant: str, count: int, *, first: bool, seconds: float) -> None:
        start = time.perf_counter()
        self._observer.tokens(variant, count, first=first, seconds=seconds)
        self._add(start)

    def finished(self, stats: RequestStats) -> None:
        start = time.perf_counter()
        self._observer.finished(stats)
        self._add(start)

    def _add(self, start: float) -> None:
        thread = threading.get_ident()
        self._seconds[thread] = self._seconds.get(thread, 0.0) + time.perf_counter() - start


async def watching(model: Path, rounds: int) -> dict[str, Any]:
    """W2 with and without metrics, in turn; who is first changes from round to round.

    `observer_ratio` is the share of the wall time that the metrics' own calls took, on either thread.
    """
    taken: dict[str, list[Figures]] = {WITH_METRICS: [], WITHOUT_METRICS: []}
    workloads = Workloads(Tokenizer.from_file(str(model / "tokenizer.json")), seed=0)
    async with _engine(model) as (engine, variant, tokenizer):
        observers = {WITH_METRICS: Timed(Metrics()), WITHOUT_METRICS: Timed(Unobserved())}
        numbers = itertools.count()
        for number in range(-1, rounds):  # the first one warms up
            prompts = [tokenizer.encode(ask.prompt).ids for ask in workloads.batch()]
            for name in list(taken)[:: -1 if number % 2 else 1]:
                engine.observer = observer = observers[name]
                before, start = observer.seconds, time.monotonic()
                num_tokens = await _batch(engine, variant, prompts, numbers)
                wall = time.monotonic() - start
                figures = {
                    "output_tokens_per_second": num_tokens / wall,
                    "observer_ratio": (observer.seconds - before) / wall,
                }
                if number >= 0:
                    taken[name].append(figures)
    return {
        "model": model.name,
        "contenders": {name: {"figures": {"W2": summary(figures)}} for name, figures in taken.items()},
    }


async def _batch(
    engine: AsyncEngine, variant: Variant, prompts: Sequence[list[int]], numbers: "itertools.count[int]"
) -> int:
    """All of W2's requests at once; returns how many tokens they got."""
    sampling = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)

    async def answer(prompt: list[int]) -> int:
        stream = engine.submit(
            request_id=str(next(numbers)), prompt_token_ids=prompt, variant=variant, sampling=sampling
        )
        try:
            return sum([len(delta.token_ids) async for delta in stream])
        finally:
            stream.abort()

    return sum(await asyncio.gather(*(answer(prompt) for prompt in prompts)))


@asynccontextmanager
async def _engine(model: Path) -> AsyncIterator[tuple[AsyncEngine, Variant, Tokenizer]]:
    """The dense model alone, with what is not metrics switched off as in the other benchmarks."""
    options = {"max_num_seqs": CONCURRENCY, "prefix_caching": False, "prompt_lookup_tokens": 0}
    settings = load_settings(ServeSettings, options)
    checkpoint = open_checkpoint(str(model), LOGS)
    architecture = checkpoint.architecture
    ranking = unranked(architecture.num_layers, architecture.intermediate_size)
    engine, builder = load_sizes(checkpoint, ranking, "uniform", (0.0,), engine_config(settings, checkpoint))
    tokenizer = checkpoint.tokenizer().backend_tokenizer
    running = AsyncEngine(engine, tokenizer, Unobserved())
    running.start()
    try:
        yield running, builder.build(0.0), tokenizer
    finally:
        await running.stop()


if __name__ == "__main__":
    main()
