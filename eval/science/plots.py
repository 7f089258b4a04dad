"""Accuracy against sparsity on every ground, what the default order keeps, and what corrections give back.

As SVG, beside what is published. Needs matplotlib. Knows grounds, not how they came about. The same results
give the same bytes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.science.collect import CORRECTED, DENSE, MODELS, TASKS, Ground, Point, order_and_rest
from eval.science.published import (
    ACCURACY,
    DENSE_ACCURACY,
    PAPER,
    PAPER_MODEL,
    PAPER_TASK,
    published_retention,
)
from eval.science.reading import OURS
from eval.study.plots import STYLE

ACCURACY_PLOT, RETENTION_PLOT = "science-accuracy.svg", "science-retention.svg"
CORRECTIONS_PLOT = "science-corrections.svg"
PUBLISHED = f"{PAPER}, published"
PUBLISHED_TRAINED = f"{PUBLISHED}, fine-tuned"
_PUBLISHED_STYLE: Any = {"color": "black", "linestyle": "--", "marker": "x", "markersize": 4}
_MARKERS = "os^DvP*X<>"  # of orders themselves, and of what is done to them
_APART = 0.35  # percent of neurons, in a plot
_MARGIN = 2  # points above the highest interval


def draw(grounds: Mapping[tuple[str, str], Ground], directory: Path) -> list[Path]:
    """Writes the plots and returns their paths. Raises OSError."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.use("svg")
    with mpl.rc_context(STYLE):
        styles = _styles(method for ground in grounds.values() for method in ground.methods)
        accuracy = Figure(figsize=(9.0, 7.0), layout="constrained")
        for axes, ground in _panels(accuracy, grounds):
            _accuracy(axes, ground, styles)
        highest = max(
            (p.score.high for ground in grounds.values() for p in ground.points.values()), default=1
        )
        axes.set_ylim(0, 100 * highest + _MARGIN)
        corrections = Figure(figsize=(9.0, 7.0), layout="constrained")
        for axes, ground in _panels(corrections, grounds):
            _corrections(axes, ground, styles)
        axes.set_ylim(bottom=0)
        for figure in (accuracy, corrections):
            handles, labels = _legend(figure)
            figure.legend(handles, labels, loc="outside lower center", ncols=3)
        retention = Figure(figsize=(6.0, 3.6), layout="constrained")
        _retention(retention.add_subplot(), grounds)
        plots = {ACCURACY_PLOT: accuracy, RETENTION_PLOT: retention, CORRECTIONS_PLOT: corrections}
        for name, figure in plots.items():
            figure.savefig(directory / name, metadata={"Date": None})
    return [directory / name for name in plots]


def _panels(figure: Any, grounds: Mapping[tuple[str, str], Ground]) -> Iterator[tuple[Any, Ground]]:
    """One for each ground, of one scale."""
    panels = figure.subplots(len(MODELS), len(TASKS), sharex=True, sharey=True).flat
    for axes, key in zip(panels, [(model, task) for model in MODELS for task in TASKS], strict=True):
        axes.set_title(f"{key[0]} at {key[1]}")
        axes.set_xlabel("MLP neurons removed, %")
        axes.grid(alpha=0.3)
        yield axes, grounds[key]
        axes.set_xlim(-1, 37)


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
    axes.set_ylabel("items solved, %")
    for method in ground.methods:
        _with_intervals(axes, ground, method, styles[method], 1.0)
    if (ground.model, ground.task) == (PAPER_MODEL, PAPER_TASK):
        shares = [100 * DENSE_ACCURACY, *(100 * share for share in ACCURACY.values())]
        axes.plot([0, *(100 * s for s in ACCURACY)], shares, label=PUBLISHED, **_PUBLISHED_STYLE)
    elif not ground.points:
        axes.text(0.5, 0.5, "not measured yet", ha="center", va="center", transform=axes.transAxes)


def _corrections(axes: Any, ground: Ground, styles: Mapping[str, dict[str, Any]]) -> None:
    """Shares of the dense model's accuracy, which is taken as known: corrected orders, without and with."""
    axes.set_ylabel("accuracy, % of the dense model's")
    if ground.dense is not None:
        parts = {method: order_and_rest(method) for method in ground.methods}
        corrections = [rest for _, rest in parts.values() if rest.startswith(CORRECTED)]
        corrected = {order for order, rest in parts.values() if rest in corrections}
        for method, (order, rest) in parts.items():
            if order in corrected and (not rest or rest in corrections):
                place = _MARKERS.index(styles[method]["marker"])  # the same in all panels
                style = styles[method] | ({"color": f"C{place}"} if rest else {})
                _with_intervals(
                    axes, ground, method, style, ground.dense.score.accuracy, shift=_APART * place
                )
    if (ground.model, ground.task) == (PAPER_MODEL, PAPER_TASK):
        for label, trained in ((PUBLISHED, False), (PUBLISHED_TRAINED, True)):
            kept = [100, *(100 * published_retention(s, trained=trained) for s in ACCURACY)]
            style = _PUBLISHED_STYLE | ({"linestyle": ":", "marker": "+"} if trained else {})
            axes.plot([0, *(100 * s for s in ACCURACY)], kept, label=label, **style)


def _with_intervals(
    axes: Any, ground: Ground, method: str, style: Mapping[str, Any], whole: float, *, shift: float = 0.0
) -> None:
    """Shares solved, in hundredths of `whole`; moved to the right by `shift` to be told apart."""
    points = ground.of(method) if style["linestyle"] == "none" else _curve(ground, method)
    if not points:
        return
    shares, low, high = (
        [100 * value / whole for value in values]
        for values in zip(*((p.score.accuracy, p.score.low, p.score.high) for p in points), strict=True)
    )
    axes.errorbar(
        [100 * point.exact_sparsity + shift for point in points],
        shares,
        yerr=[_differences(shares, low), _differences(high, shares)],
        capsize=2,
        label=method,
        **style,
    )


def _differences(larger: Sequence[float], smaller: Sequence[float]) -> list[float]:
    return [one - other for one, other in zip(larger, smaller, strict=True)]


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
