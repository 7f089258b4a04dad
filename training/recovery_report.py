"""The page of the study of recovery: a table and a plot from results.json. Measures nothing.

The same results give the same bytes. `python -m training.recovery_report` draws them anew.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from eval.study.plots import STYLE

RESULTS_FILE, REPORT_FILE, PLOT_FILE = "results.json", "report.md", "accuracy.svg"
COMPENSATED, ALONE, TOGETHER = "compensated", "one adapter each", "one adapter for all"
NOTHING = "nothing gained"
KINDS = (COMPENSATED, ALONE, TOGETHER)
_COLOURS = {COMPENSATED: "C2", ALONE: "C0", TOGETHER: "C1"}
_MARKERS = {COMPENSATED: "^", ALONE: "o", TOGETHER: "s"}

Cell = Mapping[str, Any]


def write_report(results: Mapping[str, Any], directory: Path) -> Path:
    """Writes page and plot. Raises OSError."""
    _draw(results, directory / PLOT_FILE)
    path = directory / REPORT_FILE
    path.write_text(_page(results), encoding="utf-8")
    return path


def _page(results: Mapping[str, Any]) -> str:
    training, dense, told = results["training"], results["dense"], results["provenance"]
    settings = ", ".join(f"{name} {value}" for name, value in training.items() if name != "seeds")
    return "\n".join(
        [
            "# Recovering math-mini",
            "",
            f"{dense['items']:,} problems of {results['task']['name']}, the same for every variant. The "
            f"dense model solves {_share(dense)}; intervals in brackets are Wilson's, of 95%. A seed decides "
            "which prompts are read, in which order, and the first matrices. Of several trainings told are "
            "mean, least and largest. The fit without training is that of `secateur compensate`.",
            "",
            f"Trained with: {settings}.",
            "",
            f"![Accuracy and KL before and after.]({PLOT_FILE})",
            "",
            "## Accuracy",
            "",
            *_table("removed", results, "solved before", _share, _accuracies),
            "",
            "## KL to the dense model, on its own answers to prompts that were not read, nats a token",
            "",
            *_table("removed", results, "without", _without, _divergences),
            "",
            "## Against the same variant without a delta, item by item",
            "",
            "Items that were solved without the delta only, with it only, and the exact McNemar test's p.",
            "",
            "| removed | correction | seed | without only | with only | p | against dense: p |",
            "|---|---|---|---|---|---|---|",
            *(
                f"| {_percent(variant)} | {cell['kind']} | {cell['seed']} | "
                f"{cell['against_before']['only_first']} | {cell['against_before']['only_second']} | "
                f"{cell['against_before']['p_value']:.2g} | {cell['against_dense']['p_value']:.2g} |"
                for variant in results["variants"]
                for cell in variant["corrected"]
            ),
            "",
            *_missing(results),
            "## What it takes",
            "",
            "| removed | correction | numbers in the delta | of the model's |",
            "|---|---|---|---|",
            *(
                _cost(results, variant, kind, cells)
                for variant in results["variants"]
                for kind in KINDS
                if (cells := _of(variant, kind))
            ),
            "",
            f"{told['cpu']}, commit {(told['commit'] or 'unknown')[:12]}, {told['measured_at']}.",
            "",
        ]
    )


def _table(
    corner: str,
    results: Mapping[str, Any],
    first: str,
    before: Callable[[Cell], str],
    after: Callable[[Sequence[Cell]], str],
) -> list[str]:
    return [
        f"| {corner} | {first} | {' | '.join(KINDS)} |",
        "|---" * (2 + len(KINDS)) + "|",
        *(
            f"| {_percent(variant)} | {before(variant['before'] if first == 'solved before' else variant)} | "
            f"{' | '.join(after(_of(variant, kind)) for kind in KINDS)} |"
            for variant in results["variants"]
        ),
    ]


def _missing(results: Mapping[str, Any]) -> list[str]:
    """Trainings that came to nothing, in a sentence each."""
    seeds = results["training"]["seeds"]
    found = [
        f"Of {len(seeds)} trainings of {kind} at {_percent(variant)} {gained} gained anything."
        for variant in results["variants"]
        for kind in (ALONE, TOGETHER)
        if (gained := len(_of(variant, kind))) < len(seeds)
    ]
    return [*found, ""] if found else []


def _percent(variant: Cell) -> str:
    return f"{variant['sparsity']:.0%}"


def _of(variant: Cell, kind: str) -> list[Cell]:
    return [cell for cell in variant["corrected"] if cell["kind"] == kind]


def _trained(variant: Cell) -> list[Cell]:
    return [cell for cell in variant["corrected"] if cell["kind"] != COMPENSATED]


def _share(cell: Cell) -> str:
    return f"{cell['solved'] / cell['items']:.1%} ({100 * cell['low']:.1f} to {100 * cell['high']:.1f})"


def _accuracies(cells: Sequence[Cell]) -> str:
    if not cells:
        return NOTHING
    if len(cells) == 1:
        return _share(cells[0])
    shares = [100 * cell["solved"] / cell["items"] for cell in cells]
    return f"{mean(shares):.1f}% ({min(shares):.1f} … {max(shares):.1f})"


def _without(variant: Cell) -> str:
    return _divergences(_trained(variant), "before")


def _divergences(cells: Sequence[Cell], when: str = "after") -> str:
    if not cells:
        return NOTHING
    values = [cell["kl_nats"][when] for cell in cells]
    told = f"{mean(values):.5f}"
    return told if len(values) == 1 else f"{told} ({min(values):.5f} … {max(values):.5f})"


def _cost(results: Mapping[str, Any], variant: Cell, kind: str, cells: Sequence[Cell]) -> str:
    numbers = cells[0]["delta_parameters"]
    return f"| {_percent(variant)} | {kind} | {numbers:,} | {numbers / results['parameters']:.1%} |"


def _draw(results: Mapping[str, Any], path: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.use("svg")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.6), layout="constrained")
        accuracy, divergence = figure.subplots(1, 2)
        removed = [100 * variant["exact_sparsity"] for variant in results["variants"]]
        before = [variant["before"] for variant in results["variants"]]
        shares = [100 * cell["solved"] / cell["items"] for cell in before]
        low = [share - 100 * cell["low"] for share, cell in zip(shares, before, strict=True)]
        high = [100 * cell["high"] - share for share, cell in zip(shares, before, strict=True)]
        accuracy.errorbar(
            removed, shares, yerr=[low, high], color="black", marker="x", capsize=2, label="without"
        )
        dense = results["dense"]
        accuracy.axhline(
            100 * dense["solved"] / dense["items"], color="black", linewidth=0.8, linestyle=":", label="dense"
        )
        means = [mean(c["kl_nats"]["before"] for c in _trained(v)) for v in results["variants"]]
        divergence.plot(removed, means, color="black", marker="x", label="without")
        for shift, kind in enumerate(KINDS):
            cells = [(place, cell) for place, v in zip(removed, results["variants"], strict=True)
                     for cell in _of(v, kind)]  # fmt: skip
            style: Any = {
                "linestyle": "",
                "marker": _MARKERS[kind],
                "markersize": 4,
                "color": _COLOURS[kind],
                "label": kind,
            }
            x = [place + 0.6 * (shift - 1) for place, _ in cells]
            accuracy.plot(x, [100 * cell["solved"] / cell["items"] for _, cell in cells], **style)
            divergence.plot(x, [cell["kl_nats"]["after"] for _, cell in cells], **style)
        for axes, label in ((accuracy, "items solved, %"), (divergence, "KL to dense, nats a token")):
            axes.set_xlabel("MLP neurons removed, %")
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
        divergence.set_yscale("log")
        accuracy.legend()
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    out = Path(sys.argv[1])
    print(write_report(json.loads((out / RESULTS_FILE).read_text(encoding="utf-8")), out))
