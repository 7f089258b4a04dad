"""The tables of docs/performance.md, as Markdown, each from the committed results alone.

Most are of one kind of machine; `SUMMARIES` are of all.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bench.results import OURS, Results, Run
from bench.roofline import parts
from bench.targets import (
    ALONE,
    FIGURES,
    NOT_PROBED,
    OBSERVING,
    PROBED,
    PROBES,
    WITH_METRICS,
    WITHOUT_METRICS,
    Verdict,
    pruning_gains,
    verdicts,
)

Table = Callable[[Results], str]
Summary = Callable[[Mapping[str, Results]], str]  # by machine
_MISSING = "*Not measured yet.*"


def targets(machines: Mapping[str, Results]) -> str:
    """One row a target, one column a machine that any was measured on."""
    told = {name: {each.name: each for each in verdicts(results)} for name, results in machines.items()}
    told = {name: found for name, found in told.items() if found}
    rows = []
    for target in dict.fromkeys(name for found in told.values() for name in found):
        of_each = [found.get(target) for found in told.values()]
        known = next(each for each in of_each if each is not None)
        wanted = f"{'≤' if known.at_most else '≥'} {_number(known.wanted, known.unit)}"
        rows.append([target, wanted, *("–" if each is None else _measured(each) for each in of_each)])
    return _table(["target", "wanted", *told], rows) if rows else _MISSING


def _measured(verdict: Verdict) -> str:
    told = "reached" if verdict.reached else f"not reached: {verdict.measured / verdict.wanted:.0%} of it"
    return f"{_number(verdict.measured, verdict.unit)}{verdict.note and f' {verdict.note}'}, {told}"


def _number(value: float, unit: str) -> str:
    return f"{value:.{0 if unit in ('%', 'ms', 'B', 'kB') else 2}f} {unit}"


def workloads(results: Results) -> str:
    run = results.run("peers-w123")
    return _MISSING if run is None else _compared(run)


def _compared(run: Run) -> str:
    heads = ["tokens/s", *run.contenders, *(f"over {peer}" for peer in run.peers)]
    rows = [
        [
            cell,
            *(
                _spread(run.document["contenders"][name]["figures"][cell][FIGURES[cell]])
                for name in run.contenders
            ),
            *(_ratio(run.ratio(cell, FIGURES[cell], peer)) for peer in run.peers),
        ]
        for cell in run.cells()
    ]
    return _table(heads, rows)


def lookup(results: Results) -> str:
    run = results.run("peers-lookup")
    return _MISSING if run is None else _compared(run)


def mixed(results: Results) -> str:
    rows = []
    for engine in ("openvino", "vllm"):
        run = results.run(f"peers-w4-{engine}")
        for name in run.contenders if run else ():
            assert run is not None
            contender = run.document["contenders"][name]
            resident = f"{contender['resident_bytes'] / 2**30:.1f} GiB"
            ratio = "" if name == OURS else _ratio(run.ratio("W4", FIGURES["W4"], name))
            figure = _spread(contender["figures"]["W4"][FIGURES["W4"]])
            rows.append([f"beside {engine}", name, figure, ratio, resident])
    heads = ["run", "servers", "output tokens/s", "W4 over it", "memory (PSS)"]
    return _table(heads, rows) if rows else _MISSING


def pruning(results: Results) -> str:
    run = results.run(ALONE)
    if run is None:
        return _MISSING
    rows = [
        [
            gain.cell,
            f"{gain.sparsity:g}",
            f"{gain.exact_sparsity:.3f}",
            f"{gain.allowed:.3f} ×",
            f"{gain.measured:.3f} ×",
            f"{gain.share:.0%}",
            f"{gain.saved:.0%}",
        ]
        for gain in pruning_gains(run)
    ]
    heads = ["workload", "sparsity", "exactly", "allowed", "measured", "share of the gain", "time saved"]
    return _table(heads, rows)


def service(results: Results) -> str:
    document = results.document(ALONE)
    if document is None:
        return _MISSING
    run, memory, adding = Run(document), document["memory"], document["adding"]
    figures = document["contenders"][OURS]["figures"]
    gib = {name: f"{value / 2**30:.2f} GiB" for name, value in memory.items()}
    rows = [
        ["from its start until ready", _spread(document["ready_seconds"]["ready_seconds"], 2) + " s"],
        ["weights held, KV configured", f"{gib['weight_bytes']}, {gib['kv_bytes']}"],
        ["peak resident set when ready, at the end", f"{gib['peak_bytes_when_ready']}, {gib['peak_bytes']}"],
        ["adding a variant over HTTP", _spread(adding["seconds"], 1, 1e3) + " ms"],
        ["weights that it takes", f"{adding['weight_bytes'] / 20:.0f} B"],
        ["W2: time outside of engine steps", _spread(figures["W2"]["outside_steps_ratio"], 1, 100) + " %"],
        ["W2: event loop, of all cores' time", _spread(figures["W2"]["event_loop_ratio"], 1, 100) + " %"],
        ["W1: between two tokens, p50", _spread(figures["W1"]["inter_token_p50_seconds"], 1, 1e3) + " ms"],
        ["W1: between two tokens, p99", _spread(figures["W1"]["inter_token_p99_seconds"], 1, 1e3) + " ms"],
        ["W4, requests dealt over 0, 0.1, 0.2, 0.35", _spread(figures["W4"][FIGURES["W4"]]) + " tokens/s"],
        ["reading limit, best of the run", f"{run.limit('bytes_per_second') / 1e9:.0f} GB/s"],
        ["multiplying limit, best of the run", f"{run.limit('flops_per_second') / 1e9:.0f} GFLOP/s"],
    ]
    return _table(["", "median (range)"], rows)


def watching(results: Results) -> str:
    run = results.run(OBSERVING)
    if run is None:
        return _MISSING
    scraping, figure = run.document["scraping"], FIGURES["W2"]
    both = [run.document["contenders"][name]["figures"]["W2"] for name in (WITH_METRICS, WITHOUT_METRICS)]
    rows = [
        [
            f"a scrape of {scraping['variants']} variants after {scraping['requests']:,} requests",
            _spread(scraping["seconds"], 1, 1e3) + " ms",
        ],
        ["its page", f"{scraping['bytes'] / 1e3:.0f} kB, {scraping['series']:,} series"],
        ["W2 with metrics, tokens/s", _spread(both[0][figure])],
        ["W2 without", _spread(both[1][figure])],
        ["with over without", _ratio(run.ratio("W2", figure, WITHOUT_METRICS, of=WITH_METRICS), digits=3)],
        ["the metrics' own calls, of W2's time", _spread(both[0]["observer_ratio"], 2, 100) + " %"],
    ]
    return _table(["", "median (range)"], rows)


def probing(results: Results) -> str:
    run = results.run(PROBES)
    if run is None:
        return _MISSING
    figures = {name: run.document["contenders"][name]["figures"]["W2"] for name in (PROBED, NOT_PROBED)}
    rows = [
        ["W2 with probes, tokens/s", _spread(figures[PROBED][FIGURES["W2"]])],
        ["W2 without", _spread(figures[NOT_PROBED][FIGURES["W2"]])],
        ["with over without", _ratio(run.ratio("W2", FIGURES["W2"], NOT_PROBED, of=PROBED), digits=3)],
        ["probes, of all tokens computed", _spread(figures[PROBED]["background_share"], 1, 100) + " %"],
    ]
    return _table(["", "median (range)"], rows)


def growth(results: Results) -> str:
    run = results.run("peers-growth")
    return _MISSING if run is None else _curve(run, "streams", {"output tokens/s": FIGURES["W2"]})


def context(results: Results) -> str:
    run = results.run("peers-context")
    figures = {"prefill tokens/s": FIGURES["W3"], "decode tokens/s": FIGURES["W1"]}
    return _MISSING if run is None else _curve(run, "context", figures)


def roofline(results: Results) -> str:
    run = results.run(ALONE)
    if run is None:
        return _MISSING
    rows = [
        [
            each.step,
            each.part,
            f"{each.cost.num_bytes / 1e6:,.0f}",
            f"{each.cost.num_flops / 1e9:,.1f}",
            f"{1e3 * each.least_seconds:,.1f}",
            "" if each.seconds is None else f"{1e3 * each.seconds:,.1f}",
            "" if each.share is None else f"{each.share:.0%}",
        ]
        for each in parts(run)
    ]
    return _table(["step", "part", "MB", "GFLOP", "least ms", "ms", "share"], rows)


def kernels(results: Results) -> str:
    document = results.document("kernels")
    if document is None:
        return _MISSING
    rows = [
        [
            work["name"],
            f"{1e3 * work['seconds']:.3f}",
            f"{work['bytes_per_second'] / 1e9:.1f}",
            f"{work['flops_per_second'] / 1e9:,.0f}",
            f"{work['share_of_limit']:.0%}",
            f"{work['times_torch']:.2f}",
        ]
        for work in document["work"]
    ]
    return _table(["one layer's", "ms", "GB/s", "GFLOP/s", "share of the limit", "× torch"], rows)


def cuda(results: Results) -> str:
    document = results.document("cuda")
    if document is None:
        return _MISSING
    rows = []
    for step in document["steps"]:
        ours, torchs = step["seconds"]["auto"], step["seconds"]["torch"]
        rows.append(
            [
                step["name"],
                f"{1e3 * step['limit_seconds']:.2f}",
                f"{1e3 * ours:.2f}",
                f"{step['limit_seconds'] / ours:.0%}",
                f"{step['requests'] / ours:,.0f}",
                f"{1e3 * torchs:.1f}",
                f"{torchs / ours:.1f}",
            ]
        )
    heads = ["step", "least ms", "ms", "share of the limit", "tokens/s", "torch: ms", "× torch"]
    return _table(heads, rows)


def provenance(machines: Mapping[str, Results]) -> str:
    rows = []
    for machine, results in machines.items():
        for name in results.names():
            document = results.document(name)
            assert document is not None
            place, peers = document["machine"], document.get("peers", {})
            versions = {**document["versions"], **{k: v for peer in peers.values() for k, v in peer.items()}}
            rows.append(
                [
                    f"[{machine}/{name}](../bench/results/{machine}/{name}.json)",
                    document["started"],
                    f"`{document['commit']}`",
                    f"{place['cores']} cores of {place['cpu']}, {place['memory_bytes'] / 2**30:.0f} GiB"
                    + (f", {document['device']}" if "device" in document else ""),
                    ", ".join(f"{key} {value}" for key, value in versions.items()),
                ]
            )
    return _table(["results", "measured", "commit", "machine", "versions"], rows)


SUMMARIES: Mapping[str, Summary] = {"targets": targets, "provenance": provenance}
TABLES: Mapping[str, Table] = {
    "workloads": workloads,
    "lookup": lookup,
    "mixed": mixed,
    "pruning": pruning,
    "service": service,
    "watching": watching,
    "probing": probing,
    "growth": growth,
    "context": context,
    "roofline": roofline,
    "kernels": kernels,
    "cuda": cuda,
}


def _curve(run: Run, axis: str, figures: Mapping[str, str]) -> str:
    heads = [axis, *(f"{name}: {title}" for title in figures for name in run.contenders)]
    rows = [
        [
            cell,
            *(
                f"{run.median(name, cell, figure):,.0f}"
                for figure in figures.values()
                for name in run.contenders
            ),
        ]
        for cell in run.cells()
    ]
    return _table(heads, rows)


def _spread(values: Mapping[str, Any], digits: int = 0, scale: float = 1.0) -> str:
    median, least, most = (f"{scale * values[key]:,.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({least}–{most})"


def _ratio(values: Mapping[str, float], digits: int = 2) -> str:
    median, least, most = (f"{values[key]:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} × ({least}–{most})"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
