"""`python -m bench.cuda --model DIR`: the engine's steps on a CUDA device, with our kernels and with torch's.

No HTTP and no text. Both engines are in one process and take turns. Every figure stands beside the time that
the device's memory needs for the bytes which the step has to read, or its matrix units for the products,
both measured in the same run.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench.costs import Geometry
from bench.environment import provenance
from bench.limits import Limits
from pruning.checkpoints.checkpoint import Checkpoint, default_cache_dir, open_checkpoint
from pruning.ranking.ranking import Ranking, rank
from pruning.ranking.widths import exact_sparsity, widths_at
from server.engine.config import EngineConfig
from server.engine.engine import Engine, load_engine
from server.engine.request import Request, SamplingParams
from server.engine.variant import Variant

PROMPT, ANSWER = 128, 48  # tokens
WARM_UP = 8  # steps that are not counted: graphs are made, clocks rise
MIXED = (0.0, 0.1, 0.2, 0.35)


@dataclasses.dataclass(frozen=True)
class Case:
    """So many requests at once, dealt over the sparsities; `prompt` tokens each."""

    name: str
    requests: int
    sparsities: tuple[float, ...] = (0.0,)
    prompt: int = PROMPT


CASES = (
    *(Case(f"{n} at once", n) for n in (1, 4, 16, 32, 64, 128, 256)),
    *(Case(f"1 at once, {s:.0%} removed", 1, (s,)) for s in (0.1, 0.2, 0.35, 0.5)),
    *(Case(f"32 at once, {s:.0%} removed", 32, (s,)) for s in (0.2, 0.5)),
    *(Case(f"{n} at once, dealt over 0, 10, 20 and 35%", n, MIXED) for n in (32, 128)),
    Case("1 at once after 3,000 tokens", 1, prompt=3000),
    Case("32 at once after 1,000 tokens", 32, prompt=1000),
)


class Bench:
    """One checkpoint, in engines of several kinds."""

    def __init__(self, model: str, kernels: Sequence[str]) -> None:
        self._checkpoint: Checkpoint = open_checkpoint(model, default_cache_dir())
        shape = self._checkpoint.architecture.num_layers, self._checkpoint.architecture.intermediate_size
        # Which neurons go is the same to the clock.
        scores = torch.rand(*shape, generator=torch.Generator().manual_seed(0))
        self._ranking: Ranking = rank(scores, score="random", profile_digest="none")
        config = EngineConfig(
            device="cuda:0",
            dtype="bfloat16",
            block_size=16,
            kv_cache_bytes=8 << 30,
            max_model_len=4096,
            max_num_seqs=256,
            max_num_batched_tokens=4096,
            max_waiting=1024,
            enable_prefix_caching=False,
        )
        dense = self.widths(0)
        self.engines: dict[str, Engine] = {
            kind: load_engine(
                self._checkpoint,
                self._ranking,
                dense,
                dataclasses.replace(config, kernels=kind),  # type: ignore[arg-type]
            )
            for kind in kernels
        }

    def widths(self, sparsity: float) -> tuple[int, ...]:
        return widths_at(self._ranking, sparsity, "uniform")

    def step_bytes(self, case: Case) -> int:
        """What a step reads at least: the widest variant's weights once, and the KV of all requests."""
        [engine, *_] = self.engines.values()
        weights = engine.standalone_bytes(self.widths(min(case.sparsities)))
        if not self._checkpoint.config.tie_word_embeddings:
            weights -= engine.embedding_bytes  # of which it reads a row a token
        context = case.prompt + (WARM_UP + ANSWER) // 2
        return weights + case.requests * context * self._checkpoint.architecture.kv_bytes_per_token(2)

    def decoding(self, engine: Engine, case: Case) -> float:
        """Median seconds of a step in which every request gets a token."""
        for index in range(case.requests):
            engine.add(self._request(index, case, max_tokens=WARM_UP + ANSWER))
        seconds = []
        while engine.num_unfinished:
            _, stats = engine.step()
            if sum(stats.batch_tokens.values()) == case.requests:
                seconds.append(stats.step_seconds)
        return statistics.median(seconds[WARM_UP:])

    def prompt(self, engine: Engine, tokens: int) -> float:
        """Seconds of the step that computes a prompt, median of five after a first."""
        seconds = []
        for index in range(6):
            engine.add(self._request(index, Case("", 1, prompt=tokens), max_tokens=1))
            _, stats = engine.step()
            assert not engine.num_unfinished
            seconds.append(stats.step_seconds)
        return statistics.median(seconds[1:])

    def _request(self, index: int, case: Case, max_tokens: int) -> Request:
        sparsity = case.sparsities[index % len(case.sparsities)]
        widths = self.widths(sparsity)
        exact = exact_sparsity(widths, self._checkpoint.architecture.intermediate_size)
        token_ids = torch.randint(0, 30_000, (case.prompt,)).tolist()
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
        return Request(
            str(index), token_ids, Variant(f"s{sparsity}", sparsity, exact, widths, 0, 0), sampling
        )


def limits() -> Limits:
    """Bytes a second of a sum of 8 GB, and FLOPs a second of a large bfloat16 product; best of twelve."""
    data = torch.ones(2 << 30, device="cuda")
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    return {
        "bytes_per_second": data.nbytes / min(_device_seconds(data.sum)),
        "flops_per_second": 2 * 8192**3 / min(_device_seconds(lambda: a @ b)),
    }


def _device_seconds(function: Any) -> Iterator[float]:
    for _ in range(12):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        yield start.elapsed_time(end) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cuda", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="checkpoint directory")
    parser.add_argument("--kernels", default="auto,torch", help="kinds of engines (default: %(default)s)")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    args = parser.parse_args()
    started = time.monotonic()
    bench = Bench(args.model, args.kernels.split(","))
    ready = time.monotonic() - started
    machine = limits()
    rows: list[dict[str, Any]] = []
    for case in tqdm([case for case in CASES if args.only in case.name], unit="case"):
        seconds = {kind: bench.decoding(engine, case) for kind, engine in bench.engines.items()}
        needed = bench.step_bytes(case) / machine["bytes_per_second"]
        rows.append({**dataclasses.asdict(case), "seconds": seconds, "limit_seconds": needed})
    for tokens in (1024, 3500):
        seconds = {kind: bench.prompt(engine, tokens) for kind, engine in bench.engines.items()}
        needed = Geometry.read(Path(args.model)).prefill(tokens).num_flops / machine["flops_per_second"]
        rows.append(
            {
                "name": f"prompt of {tokens:,} tokens",
                "requests": tokens,
                "seconds": seconds,
                "limit_seconds": needed,
            }
        )
    for row in rows:
        times = "  ".join(
            f"{kind} {1e3 * s:8.3f} ms {row['requests'] / s:9,.0f} tokens/s"
            for kind, s in row["seconds"].items()
        )
        print(f"{row['name']:<44} limit {1e3 * row['limit_seconds']:7.3f} ms  {times}")
    document = {
        **provenance(),
        "device": torch.cuda.get_device_name(),
        "model": Path(args.model).name,
        "kernels": {kind: engine.kernels for kind, engine in bench.engines.items()},
        "load_seconds": ready,
        "limits": machine,
        "steps": rows,
    }
    if args.out is not None:
        args.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
