"""The least time that a step can take at the machine's limits, against the time that it took."""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.costs import Cost, Geometry
from bench.results import OURS, Run
from bench.workloads import CONCURRENCY, LONG_PROMPT_TOKENS, NEW_TOKENS


@dataclass(frozen=True)
class Part:
    """A step, or a part of one; only whole steps are measured through the server."""

    step: str
    part: str
    cost: Cost
    least_seconds: float
    seconds: float | None = None

    @property
    def share(self) -> float | None:
        """Of the machine's limit that was reached."""
        return None if self.seconds is None else self.least_seconds / self.seconds


def parts(run: Run) -> Iterator[Part]:
    """Decoding one stream and 32, at half of the answer, and the long prompt; dense."""
    geometry = Geometry(**run.document["geometry"])
    for cell, count in (("W1", 1), ("W2", CONCURRENCY)):
        context = run.median(OURS, cell, "prompt_tokens") / count + NEW_TOKENS / 2
        pieces = {
            "attention": geometry.attention(count, count * context, count * context),
            "MLP": geometry.mlp([0.0] * count),
            "head": geometry.head(count),
        }
        seconds = run.median(OURS, cell, "inter_token_p50_seconds")
        step = f"decode, {count} stream{'s' * (count > 1)}"
        yield from _step(run, step, pieces, geometry.decode([0.0] * count, context), seconds)
    num_tokens = LONG_PROMPT_TOKENS
    pieces = {
        "attention": geometry.attention(num_tokens, num_tokens * (num_tokens + 1) / 2, num_tokens),
        "MLP": geometry.mlp([0.0] * num_tokens),
        "head": geometry.head(1),
    }
    seconds = run.median(OURS, "W3", "ttft_seconds")
    yield from _step(run, f"prefill, {num_tokens:,} tokens", pieces, geometry.prefill(num_tokens), seconds)


def _step(run: Run, name: str, pieces: dict[str, Cost], whole: Cost, seconds: float) -> Iterator[Part]:
    limits = run.limit("bytes_per_second"), run.limit("flops_per_second")
    for part, cost in pieces.items():
        yield Part(name, part, cost, cost.seconds(*limits))
    # Parts run one after the other, so the least of a step is the sum of theirs.
    yield Part(name, "all", whole, sum(cost.seconds(*limits) for cost in pieces.values()), seconds)
