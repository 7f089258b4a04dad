"""A comparison of rankings as Markdown. Every word that depends on a number is made from that number."""

from eval.comparison.comparison import Cell, Comparison, Estimate


def render(comparison: Comparison) -> str:
    """A table for each sparsity, the least divergence first, and the recommendation."""
    end = comparison.dense_end_probability
    known = f"; the dense model gives its own ends {end:.3f}" if end is not None else ""
    parts = [
        f"# {comparison.model['name']} at {comparison.task['name']}: which neurons go first",
        f"{comparison.answers} held-out answers of the dense model, {comparison.tokens:,} tokens{known}.",
    ]
    for sparsity in sorted({cell.sparsity for cell in comparison.cells}):
        cells = [cell for cell in comparison.cells if cell.sparsity == sparsity]
        parts.append(f"## {100 * sparsity:g}% of the neurons removed\n\n{_table(cells)}")
    parts.append(f"## Over all sparsities\n\n{_standings(comparison)}")
    parts.append(_recommendation(comparison))
    return "\n\n".join(parts) + "\n"


def _table(cells: list[Cell]) -> str:
    lines = [
        "| candidate | removed | KL, nats a token | worst fifth | same likeliest token | end of answer |",
        "|---|---|---|---|---|---|",
    ]
    for cell in sorted(cells, key=lambda cell: cell.figures.kl.value):
        figures = cell.figures
        end = "-" if figures.end_probability is None else _interval(figures.end_probability)
        lines.append(
            f"| {cell.candidate.name} | {cell.exact_sparsity:.4f} | {_interval(figures.kl)} "
            f"| {_interval(figures.worst_kl)} | {_interval(figures.agreement)} | {end} |"
        )
    return "\n".join(lines)


def _standings(comparison: Comparison) -> str:
    lines = ["| candidate | KL, times the best's | |", "|---|---|---|"]
    for place, standing in enumerate(comparison.standings):
        verdict = (
            "recommended" if place == 0 else "worse" if standing.is_shown_to_be_worse else "not shown worse"
        )
        lines.append(f"| {standing.candidate.name} | {_interval(standing.times_best)} | {verdict} |")
    return "\n".join(lines)


def _recommendation(comparison: Comparison) -> str:
    rivals = [s.candidate.name for s in comparison.standings[1:] if not s.is_shown_to_be_worse]
    best = comparison.recommended.name
    told = f"Recommended: **{best}**, the least KL in geometric mean over the sparsities. "
    if rivals:
        told += f"Not shown to be worse on these answers: {'; '.join(rivals)}. "
    return told + "Brackets: 95% bootstrap intervals over answers."


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3g} ({estimate.low:.3g} to {estimate.high:.3g})"
