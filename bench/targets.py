"""What was wanted of the speed and size of Secateur, and what the measurements say to it."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from bench.costs import Geometry
from bench.results import OURS, Results, Run
from bench.workloads import CONCURRENCY

ALONE, OBSERVING, PROBES = "alone", "observing", "probes"
WITH_METRICS, WITHOUT_METRICS = "with metrics", "without"
PROBED, NOT_PROBED = "with", "without"
# What counts in each workload.
FIGURES = {
    "W1": "decode_tokens_per_second",
    "W2": "output_tokens_per_second",
    "W3": "prefill_tokens_per_second",
    "W4": "output_tokens_per_second",
}


@dataclass(frozen=True)
class Verdict:
    """One target.

    Attributes:
        wanted: the least value, or with `at_most` the largest.
        note: what was measured, where it is one of several.
    """

    name: str
    wanted: float
    measured: float
    unit: str = "×"
    at_most: bool = False
    note: str = ""

    @property
    def reached(self) -> bool:
        return self.measured <= self.wanted if self.at_most else self.measured >= self.wanted


def verdicts(results: Results) -> Iterator[Verdict]:
    """On every target that was measured on one machine."""
    if compared := results.run("peers-w123"):
        for cell, wanted in (("W1", 1.6), ("W2", 1.3), ("W3", 1.1)):
            yield _against_best(compared, f"{cell} over the best peer", cell, wanted)
    if guessing := results.run("peers-lookup"):
        yield _against_best(guessing, "W1 over the best peer, all with prompt lookup", "W1", 1.6)
    for engine, wanted in (("openvino", 2.0), ("vllm", 3.0)):
        if mixed := results.run(f"peers-w4-{engine}"):
            yield from _against_four(mixed, engine, wanted)
    if alone := results.run(ALONE):
        yield from _pruning_pays(alone)
        yield from _service(alone)
    if observing := results.run(OBSERVING):
        yield from _watching(observing)
    if probing := results.run(PROBES):
        yield _probing(probing)


def _against_best(run: Run, name: str, cell: str, wanted: float) -> Verdict:
    return Verdict(name, wanted, min(run.ratio(cell, FIGURES[cell], peer)["median"] for peer in run.peers))


def _against_four(run: Run, engine: str, wanted: float) -> Iterator[Verdict]:
    four, dense = f"4 x {engine}", f"{OURS}, dense"
    yield Verdict(
        f"W4 over our own W2 at 0 (beside {engine})", 1.0, run.ratio("W4", FIGURES["W4"], dense)["median"]
    )
    yield Verdict(f"W4 over four {engine} servers", wanted, run.ratio("W4", FIGURES["W4"], four)["median"])
    share = run.resident_bytes(OURS) / run.resident_bytes(four)
    yield Verdict(f"W4's memory over four {engine} servers'", 1 / 3, share, at_most=True)


def _pruning_pays(run: Run) -> Iterator[Verdict]:
    for cell in ("W1", "W2"):
        gains = [gain for gain in pruning_gains(run) if gain.cell == cell]
        if gains:
            least = min(gains, key=lambda gain: gain.share)
            name = f"{cell}'s gain by pruning, of what was removed; the least"
            yield Verdict(name, 85, 100 * least.share, "%", note=f"at {least.sparsity:g}")


@dataclass(frozen=True)
class Gain:
    """What leaving neurons out brought.

    Attributes:
        allowed, measured: times faster than dense, by the counts and by the clock.
        saved: time that went, of what the neurons left out take at the machine's limits. Unlike `share`, it
            is not lowered by what the rest of a step takes beyond its own limit.
    """

    cell: str
    sparsity: float
    exact_sparsity: float
    allowed: float
    measured: float
    saved: float

    @property
    def share(self) -> float:
        return (self.measured - 1) / (self.allowed - 1)


def pruning_gains(run: Run) -> list[Gain]:
    """W1 is held to the bytes that a step reads, W2 to the least time of its steps at the machine's limits.

    Where 32 streams wait for arithmetic, as on most CPUs, that is their FLOPs; elsewhere reading counts.
    """
    geometry = Geometry(**run.document["geometry"])
    limits = run.limit("bytes_per_second"), run.limit("flops_per_second")
    gains = []
    for cell in run.cells():
        workload, _, sparsity = cell.partition(" at ")
        if not sparsity:
            continue
        exact = run.document["variants"][sparsity]
        if workload == "W1":
            tokens = 1.0
            context = run.median(OURS, cell, "prompt_tokens") + 64
            dense, pruned = (geometry.decode([s], context).num_bytes / limits[0] for s in (0.0, exact))
        else:
            tokens = run.median(OURS, cell, "output_tokens")
            prompt, output = (
                round(run.median(OURS, cell, f"{n}_tokens") / CONCURRENCY) for n in ("prompt", "output")
            )
            dense, pruned = (
                sum(cost.seconds(*limits) for cost in geometry.answer(CONCURRENCY, prompt, output, s))
                for s in (0.0, exact)
            )
        figure = FIGURES[workload]  # tokens a second
        pairs = list(zip(run.values(OURS, cell, figure), run.values(OURS, workload, figure), strict=True))
        gains.append(
            Gain(
                workload,
                float(sparsity),
                exact,
                allowed=dense / pruned,
                measured=statistics.median(ours / whole for ours, whole in pairs),
                saved=statistics.median(tokens / whole - tokens / ours for ours, whole in pairs)
                / (dense - pruned),
            )
        )
    return gains


def _service(run: Run) -> Iterator[Verdict]:
    memory = run.document["memory"]
    held = memory["weight_bytes"] + memory["kv_bytes"]
    # Whoever is only ready has written nothing into the KV yet, so that none of it is resident.
    most = memory["peak_bytes_when_ready"] + memory["kv_bytes"]
    yield Verdict(
        "ready after", 5.0, run.document["ready_seconds"]["ready_seconds"]["median"], "s", at_most=True
    )
    yield Verdict("peak memory over weights and KV", 1.15, most / held, at_most=True)
    adding = run.document["adding"]
    yield Verdict("adding a variant, slowest of 20", 50, 1e3 * adding["seconds"]["max"], "ms", at_most=True)
    yield Verdict("weight bytes of 20 variants added", 0, adding["weight_bytes"], "B", at_most=True)
    gateway = run.median(OURS, "W2", "gateway_ratio")
    yield Verdict("gateway's share of W2", 5, 100 * gateway, "%", at_most=True)
    slow, usual = (run.values(OURS, "W1", f"inter_token_{q}_seconds") for q in ("p99", "p50"))
    jitter = statistics.median(a / b for a, b in zip(slow, usual, strict=True))
    yield Verdict("W1 inter-token p99 over p50", 1.5, jitter, at_most=True)


def _watching(run: Run) -> Iterator[Verdict]:
    scraping = run.document["scraping"]
    yield Verdict("scraping 12 variants", 20, 1e3 * scraping["seconds"]["median"], "ms", at_most=True)
    yield Verdict("their page", 200, scraping["bytes"] / 1e3, "kB", at_most=True)
    kept = run.ratio("W2", FIGURES["W2"], WITHOUT_METRICS, of=WITH_METRICS)["median"]
    yield Verdict("W2 with metrics over W2 without", 0.99, kept)


def _probing(run: Run) -> Verdict:
    kept = run.ratio("W2", FIGURES["W2"], NOT_PROBED, of=PROBED)["median"]
    budget = run.document["budget"]
    return Verdict(f"W2 with probes over W2 without, at a budget of {budget:.0%}", 1 - budget, kept)
