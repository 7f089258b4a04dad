"""The curves of docs/performance.md, as small SVG files."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.results import Results, Run
from bench.targets import FIGURES

# The same file from the same numbers.
matplotlib.rcParams.update(
    {"svg.hashsalt": "secateur", "svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}
)


def draw(machines: Mapping[str, Results], images: Path) -> list[Path]:
    """Draws what has been measured; the files."""
    drawn = []
    for machine, results in machines.items():
        if run := results.run("peers-growth"):
            figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
            _curve(axes, run, FIGURES["W2"], "requests at once", "output tokens/s")
            drawn.append(images / f"growth-{machine}.svg")
            figure.savefig(drawn[-1], metadata={"Date": None})
        if run := results.run("peers-context"):
            figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
            _curve(left, run, FIGURES["W3"], "tokens of the prompt", "prefill tokens/s")
            _curve(right, run, FIGURES["W1"], "tokens of the prompt", "decode tokens/s")
            drawn.append(images / f"context-{machine}.svg")
            figure.savefig(drawn[-1], metadata={"Date": None})
    plt.close("all")
    return drawn


def _curve(axes: Axes, run: Run, figure: str, across: str, up: str) -> None:
    """Medians, and the range of the rounds as a band."""
    for name in run.contenders:
        cells = run.cells(name)
        x = [int(cell) for cell in cells]
        values = [run.values(name, cell, figure) for cell in cells]
        [line] = axes.plot(
            x, [run.median(name, cell, figure) for cell in cells], marker="o", ms=3, label=name
        )
        axes.fill_between(
            x, [min(v) for v in values], [max(v) for v in values], color=line.get_color(), alpha=0.2
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(x, labels=[f"{tick:,}" for tick in x])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.legend()
