"""A study's curves as SVG: accuracy, traps, memory and throughput against sparsity. Needs matplotlib.

Knows results, not how they came about. The same results give the same bytes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.study.results import CellResult, StudyResults
from eval.subject import Strategy

SIZE_INCHES = (6.0, 3.6)
STYLE: Any = {"svg.hashsalt": "secateur", "svg.fonttype": "none", "font.size": 9, "axes.grid": True}
_MARKERS: Any = {"marker": "o", "markersize": 3}


def draw(results: StudyResults, directory: Path) -> list[tuple[str, str]]:
    """Writes the plots. Returns file name and title of each; none where matplotlib is not installed.

    Raises:
        OSError: they cannot be written.
    """
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        return []
    mpl.use("svg")
    plots: list[tuple[str, str, Callable[[Any], None]]] = [
        ("accuracy.svg", "Accuracy", lambda axes: _accuracy(axes, results)),
        ("traps.svg", "Answers that did not end", lambda axes: _traps(axes, results)),
    ]
    if results.dense.weight_bytes is not None:
        plots.append(("memory.svg", "Weights of each variant alone", lambda axes: _memory(axes, results)))
    if results.dense.tokens_per_second is not None:
        plots.append(("throughput.svg", "Throughput", lambda axes: _throughput(axes, results)))
    for name, title, fill in plots:
        _write(directory / name, title, fill)
    return [(name, title) for name, title, _ in plots]


def _write(path: Path, title: str, fill: Callable[[Any], None]) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title)
        axes.set_xlabel("MLP neurons removed, %")
        axes.grid(alpha=0.3)
        fill(axes)
        figure.savefig(path, metadata={"Date": None})


def _accuracy(axes: Any, results: StudyResults) -> None:
    for strategy in results.strategies:
        cells = _curve(results, strategy)
        shares = [100 * cell.score.accuracy for cell in cells]
        axes.errorbar(
            _removed(cells),
            shares,
            yerr=[
                [share - 100 * cell.score.low for share, cell in zip(shares, cells, strict=True)],
                [100 * cell.score.high - share for share, cell in zip(shares, cells, strict=True)],
            ],
            capsize=2,
            label=strategy.name,
            **_MARKERS,
        )
    axes.set_ylabel("items solved, %")
    axes.set_ylim(bottom=0)
    axes.legend()


def _traps(axes: Any, results: StudyResults) -> None:
    for strategy in results.strategies:
        cells = _curve(results, strategy)
        rates = [100 * cell.score.trap_rate for cell in cells]
        axes.plot(_removed(cells), rates, label=strategy.name, **_MARKERS)
    axes.set_ylabel("answers, %")
    axes.set_ylim(bottom=0)
    axes.legend()


def _memory(axes: Any, results: StudyResults) -> None:
    cells = _curve(results, results.strategies[0])
    axes.plot(_removed(cells), [(cell.weight_bytes or 0) / 1e6 for cell in cells], **_MARKERS)
    axes.set_ylabel("MB")
    axes.set_ylim(bottom=0)


def _throughput(axes: Any, results: StudyResults) -> None:
    cells = [cell for cell in _curve(results, results.strategies[0]) if cell.tokens_per_second is not None]
    axes.plot(_removed(cells), [cell.tokens_per_second for cell in cells], **_MARKERS)
    axes.set_ylabel("output tokens / s")
    axes.set_ylim(bottom=0)


def _curve(results: StudyResults, strategy: Strategy) -> list[CellResult]:
    """From the dense model on."""
    return [results.dense, *results.of(strategy)]


def _removed(cells: Sequence[CellResult]) -> list[float]:
    """Where they are on the x axis."""
    return [100 * cell.exact_sparsity for cell in cells]
