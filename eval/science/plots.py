"""Accuracy against sparsity on every ground, and retention beside the published one, as SVG.

Needs matplotlib. Knows grounds, not how they came about. The same results give the same bytes.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from eval.plots import STYLE
from eval.science.collect import DENSE, MODELS, TASKS, Ground, Point, order_and_rest
from eval.science.published import (
    ACCURACY,
    DENSE_ACCURACY,
    PAPER,
    PAPER_MODEL,
    PAPER_TASK,
    published_retention,
)
from eval.science.reading import OURS

ACCURACY_PLOT, RETENTION_PLOT = "science-accuracy.svg", "science-retention.svg"
PUBLISHED = f"{PAPER}, published"
_PUBLISHED_STYLE: Any = {"color": "black", "linestyle": "--", "marker": "x", "markersize": 4}
_MARKERS = "os^DvP*X<>"  # of orders themselves, and of what is done to them
_MARGIN = 2  # points above the highest interval


def draw(grounds: Mapping[tuple[str, str], Ground], directory: Path) -> list[Path]:
    """Writes both plots and returns their paths. Raises OSError."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.use("svg")
    with mpl.rc_context(STYLE):
        accuracy = Figure(figsize=(9.0, 7.0), layout="constrained")
        styles = _styles(method for ground in grounds.values() for method in ground.methods)
        for axes, (model, task) in zip(
            accuracy.subplots(len(MODELS), len(TASKS), sharex=True, sharey=True).flat,
            [(model, task) for model in MODELS for task in TASKS],
            strict=True,
        ):
            _accuracy(axes, grounds[model, task], styles)
        highest = max(
            (p.score.high for ground in grounds.values() for p in ground.points.values()), default=1
        )
        axes.set_ylim(0, 100 * highest + _MARGIN)
        handles, labels = _legend(accuracy)
        accuracy.legend(handles, labels, loc="outside lower center", ncols=3)
        retention = Figure(figsize=(6.0, 3.6), layout="constrained")
        _retention(retention.add_subplot(), grounds)
        paths = [directory / ACCURACY_PLOT, directory / RETENTION_PLOT]
        for figure, path in zip((accuracy, retention), paths, strict=True):
            figure.savefig(path, metadata={"Date": None})
    return paths


def _styles(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A colour for each order; what is done to one ("+ recovered", "in int8") has it too, and other markers.

    The latter was done at one sparsity, or at a few by themselves, so no line connects it.
    """
    parts = {method: order_and_rest(method) for method in methods}
    orders = list(dict.fromkeys(order for order, _ in parts.values() if order != DENSE))
    rests = ["", *dict.fromkeys(rest for _, rest in parts.values() if rest)]
    return {
        method: {
            "color": "gray" if order == DENSE else f"C{orders.index(order)}",
            "marker": _MARKERS[rests.index(rest) % len(_MARKERS)],
            "markersize": 5 if rest else 3,
            "linestyle": "none" if rest else "-",
        }
        for method, (order, rest) in parts.items()
    }


def _accuracy(axes: Any, ground: Ground, styles: Mapping[str, dict[str, Any]]) -> None:
    axes.set_title(f"{ground.model} at {ground.task}")
    axes.set_xlabel("MLP neurons removed, %")
    axes.set_ylabel("items solved, %")
    axes.grid(alpha=0.3)
    for method in ground.methods:
        style = styles[method]
        points = ground.of(method) if style["linestyle"] == "none" else _curve(ground, method)
        if not points:
            continue
        shares = [100 * point.score.accuracy for point in points]
        low = [share - 100 * point.score.low for share, point in zip(shares, points, strict=True)]
        high = [100 * point.score.high - share for share, point in zip(shares, points, strict=True)]
        axes.errorbar(
            [100 * point.exact_sparsity for point in points],
            shares,
            yerr=[low, high],
            capsize=2,
            label=method,
            **style,
        )
    if (ground.model, ground.task) == (PAPER_MODEL, PAPER_TASK):
        shares = [100 * DENSE_ACCURACY, *(100 * share for share in ACCURACY.values())]
        axes.plot([0, *(100 * s for s in ACCURACY)], shares, label=PUBLISHED, **_PUBLISHED_STYLE)
    elif not ground.points:
        axes.text(0.5, 0.5, "not measured yet", ha="center", va="center", transform=axes.transAxes)
    axes.set_xlim(-1, 37)


def _retention(axes: Any, grounds: Mapping[tuple[str, str], Ground]) -> None:
    axes.set_title("What the default order keeps")
    axes.set_xlabel("MLP neurons removed, %")
    axes.set_ylabel("accuracy, % of the dense model's")
    axes.grid(alpha=0.3)
    for (model, task), ground in grounds.items():
        points = _curve(ground, OURS)
        if len(points) > 1 and ground.dense is not None:
            kept = [100 * point.score.correct / ground.dense.score.correct for point in points]
            label = f"{OURS}, {model} at {task}"
            axes.plot([100 * p.exact_sparsity for p in points], kept, marker="o", markersize=3, label=label)
    kept = [100, *(100 * published_retention(s) for s in ACCURACY)]
    label = f"{PUBLISHED}, {PAPER_MODEL} at {PAPER_TASK}"
    axes.plot([0, *(100 * s for s in ACCURACY)], kept, label=label, **_PUBLISHED_STYLE)
    axes.set_ylim(bottom=0)
    axes.legend()


def _curve(ground: Ground, method: str) -> list[Point]:
    """From the dense model on; nothing where only that is known."""
    points = ground.of(method)
    return [*ground.of(DENSE), *points] if points else []


def _legend(figure: Any) -> tuple[list[Any], list[str]]:
    """Each method once, whichever panels it is in."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)
