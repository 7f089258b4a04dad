"""A study as a page: results in, Markdown out. Every word that depends on a number is made from that number.

Measures nothing and writes no files but through eval/study/plots.py.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from eval.statistics import least_accuracy, minimum_detectable_drop
from eval.study.paired import Threshold
from eval.study.plots import draw
from eval.study.results import CellResult, StudyResults, StudyRun
from eval.study.study import TIMED_REQUESTS, TIMED_ROUNDS, TIMED_TOKENS
from eval.subject import Strategy
from eval.traps import Trap

POWER = 0.8
TRAPS = {
    Trap.LOOP_AFTER_ANSWER: "loop after the answer (type 1)",
    Trap.LOOP_BEFORE_ANSWER: "loop before any answer (type 2)",
    Trap.MISSING_STOP: "no end, no loop",
}


def write_report(results: StudyResults, directory: Path) -> Path:
    """Writes report.md and its plots into `directory`. Raises OSError."""
    plots = draw(results, directory)
    path = directory / "report.md"
    path.write_text(render(results, plots), encoding="utf-8")
    return path


def render(results: StudyResults, plots: Sequence[tuple[str, str]]) -> str:
    """The page.

    Args:
        plots: file name, beside the page, and title of each.
    """
    parts = [
        f"# What pruning leaves of {results.model['name']} at {results.task['name']}",
        _findings(results),
        _images(plots, "accuracy.svg"),
        "## Accuracy",
        _accuracy(results),
        "## Against the dense model",
        _comparison(results),
        "## Answers that did not end",
        _images(plots, "traps.svg"),
        _traps(results),
        "## What a variant costs",
        _images(plots, "memory.svg", "throughput.svg"),
        _costs(results),
        "## How it was measured",
        _method(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def threshold_sentence(threshold: Threshold) -> str:
    """What the study says of safety, with the words for each outcome."""
    tolerance = f"{_points(threshold.tolerance)} points"
    if not threshold.has_something_to_lose:
        return (
            f"No sparsity can be called safe: the dense model solves {threshold.dense_solved} of "
            f"{threshold.items} items, and only where it is shown to solve more than "
            f"{_points(least_accuracy(threshold.tolerance))}% does a tolerance of {tolerance} say anything. "
            "There is too little to lose: take an easier task, or more items."
        )
    if not threshold.could_be_shown:
        return (
            f"No sparsity can be called safe or unsafe: at a tolerance of {tolerance}, "
            f"{threshold.confidence:.0%} confidence takes {threshold.items_needed} items even where no "
            f"answer differs, and there were {threshold.items}."
        )
    if threshold.stopped_by is None:
        return (
            f"Every sparsity studied, up to **{threshold.sparsity:g}**, is safe: the loss is within "
            f"{tolerance} at {threshold.confidence:.0%} confidence."
        )
    known = f"Up to **{threshold.sparsity:g}**" if threshold.sparsity else "**No sparsity** studied"
    return (
        f"{known} is safe: the loss is shown to be within {tolerance} at {threshold.confidence:.0%} "
        f"confidence. At {threshold.stopped_by:g} that could not be shown."
    )


def _findings(results: StudyResults) -> str:
    dense = results.dense
    lines = [
        f"The whole model solves {_share(dense)} of {dense.score.items} held-out items. "
        f"Neurons go by *{results.strategies[0].name}*. {threshold_sentence(results.threshold)}"
    ]
    lines += [f"- {_fate(results, strategy)}" for strategy in results.strategies]
    return lines[0] + "\n\n" + "\n".join(lines[1:])


def _fate(results: StudyResults, strategy: Strategy) -> str:
    cells = results.of(strategy)
    worse = [c for c in cells if c.comparison is not None and c.comparison.drop_low > 0]
    last = cells[-1]
    begins = f"a loss shows from {worse[0].sparsity:g} on" if worse else "no loss shows"
    return f"*{strategy.name}*: {begins}; at {last.sparsity:g} it solves {last.score.accuracy:.1%}."


def _accuracy(results: StudyResults) -> str:
    text = f"Share of the items solved, with the {results.threshold.confidence:.0%} Wilson interval."
    if any(len(results.of(strategy)) < len(results.sparsities) for strategy in results.strategies):
        text += " A dash: not all items have been asked yet."
    return f"{_by_sparsity(results, _share)}\n\n{text}"


def _comparison(results: StudyResults) -> str:
    def cell(result: CellResult) -> str:
        comparison = result.comparison
        if comparison is None:
            return "-"
        return (
            f"{_signed(comparison.drop)} (at most {_signed(comparison.drop_high)}), "
            f"+{comparison.only_variant} -{comparison.only_dense}, p = {comparison.p_value:.2g}"
        )

    return _by_sparsity(results, cell, dense=False) + (
        "\n\nPoints of accuracy lost on the same items (the one-sided bound of Tango, 1998, at "
        f"{results.threshold.confidence:.0%}); items that only the variant (+) and only the dense model (-) "
        "solved; exact two-sided McNemar test. A sparsity is safe if its bound, and that of every smaller "
        f"one, is at most {_points(results.threshold.tolerance)}: tested in this order up to the first that "
        f"fails, so that one error probability holds for all of them together. {_detectable(results)}"
    )


def _detectable(results: StudyResults) -> str:
    """What so many items can show at all."""
    items, accuracy = results.dense.score.items, results.dense.score.accuracy
    if not accuracy:
        return "There is no drop to be seen below a dense model that solves nothing."
    cautious, hopeful = (
        minimum_detectable_drop(
            items, accuracy, agreement=agreement, confidence=results.threshold.confidence, power=POWER
        )
        for agreement in (0.0, 1.0)
    )
    told = f"With {POWER:.0%} probability {items:,} items show"
    if math.isnan(cautious):
        return f"{told} no drop, not even that of all accuracy."
    return (
        f"{told} a drop of {100 * hopeful:.1f} points if it is all that sets the two apart, one of "
        f"{100 * cautious:.1f} if they fail at items of their own."
    )


def _traps(results: StudyResults) -> str:
    seen = [trap for trap in TRAPS if any(trap in cell.score.traps for cell in results.cells)]
    if not seen:
        return "Every answer came to an end."

    def cell(result: CellResult) -> str:
        return " / ".join(f"{result.score.traps.get(trap, 0) / result.score.items:.1%}" for trap in seen)

    names = " / ".join(TRAPS[trap] for trap in seen)
    early = sum(cell.score.cut_off_loops for cell in results.cells)
    if not results.settings["stop_on_loop"]:
        ends = "Looping answers ran on to their length limit."
    elif early:
        ends = (
            f"{early:,} looping answers were ended early, for a loop does not end by itself; they are graded "
            "as they stood then."
        )
    else:
        ends = "No looping answer was long enough to be ended early."
    return _by_sparsity(results, cell) + f"\n\nShares of the answers: {names}. {ends}"


def _costs(results: StudyResults) -> str:
    cells = [results.dense, *results.of(results.strategies[0])]
    head = ["sparsity", "exact", "parameters", "weights alone", "output tokens/s", "against dense"]
    rows = [
        [
            f"{cell.sparsity:g}",
            f"{cell.exact_sparsity:.4f}",
            "-" if cell.parameters is None else f"{cell.parameters / 1e6:,.2f} M",
            "-" if cell.weight_bytes is None else f"{cell.weight_bytes / 1e6:,.2f} MB",
            "-" if cell.tokens_per_second is None else f"{cell.tokens_per_second:,.0f}",
            _speedup(cell, results.dense),
        ]
        for cell in cells
    ]
    text = _table(head, rows) + "\n\nWeights alone: of a checkpoint that held this variant and no other. "
    if results.dense.tokens_per_second is None:
        return text + "Throughput was not measured."
    return text + (
        f"Throughput: {TIMED_REQUESTS} answers of {TIMED_TOKENS} tokens at once, all of one variant, prompts "
        f"included; median of {TIMED_ROUNDS} rounds, variants in turn."
    )


def _speedup(cell: CellResult, dense: CellResult) -> str:
    if cell.tokens_per_second is None or dense.tokens_per_second is None:
        return "-"
    return f"{cell.tokens_per_second / dense.tokens_per_second:.2f} x"


def _method(results: StudyResults) -> str:
    where = results.provenance
    facts = {
        "model": results.model,
        "task": results.task,
        "settings": results.settings,
        "machine": {
            "cpu": where.cpu,
            "cores": where.cores,
            "memory": f"{where.memory_bytes / 2**30:.0f} GiB",
            "system": where.system,
        },
        "code": {"commit": where.commit, **where.versions, "finished": where.measured_at},
    }
    rows = [
        [what, "; ".join(f"{name} {value}" for name, value in told.items() if value is not None)]
        for what, told in facts.items()
    ]
    if results.runs:
        rows += [["how", _runs(results.runs)]]
    strategies = "\n".join(
        f"- *{s.name}*: {'lowest' if s.order == 'forward' else 'highest'} {s.score} first"
        for s in results.strategies
    )
    return (
        "Greedy answers, the same items for every variant. Widths are rounded: `exact` is what was removed. "
        "`results.json` has everything on this page, and what each variant solved, item by item.\n\n"
        f"Which neurons go first:\n\n{strategies}\n\n{_table(['', ''], rows)}\n\n"
        "The experiment follows [arXiv 2604.27115](https://arxiv.org/abs/2604.27115)."
    )


def _runs(runs: Sequence[StudyRun]) -> str:
    """Each command once, and the time of all runs together."""
    minutes, seconds = divmod(round(sum(run.seconds for run in runs)), 60)
    commands = "; ".join(f"`{command}`" for command in dict.fromkeys(run.command for run in runs))
    times = "one run" if len(runs) == 1 else f"{len(runs)} runs"
    return f"{commands}; took {minutes // 60} h {minutes % 60} min {seconds} s in {times}"


def _by_sparsity(results: StudyResults, cell: Callable[[CellResult], str], *, dense: bool = True) -> str:
    """Strategies down, sparsities across."""
    head = ["strategy", *(["0"] if dense else []), *(f"{s:g}" for s in results.sparsities)]
    rows = []
    for strategy in results.strategies:
        found = {c.sparsity: cell(c) for c in results.of(strategy)}
        first = [cell(results.dense)] if dense else []
        rows.append([strategy.name, *first, *(found.get(s, "-") for s in results.sparsities)])
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _images(plots: Sequence[tuple[str, str]], *names: str) -> str:
    return "\n".join(f"![{title}]({name})" for name, title in plots if name in names)


def _share(cell: CellResult) -> str:
    score = cell.score
    return f"{score.accuracy:.1%} ({100 * score.low:.1f} to {100 * score.high:.1f})"


def _points(share: float) -> str:
    return f"{100 * share:g}"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}"
