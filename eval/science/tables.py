"""The parts of docs/science.md that are made from results: tables, the reading, and what is missing. Pure."""

from collections.abc import Callable, Mapping, Sequence

from eval.science.collect import DENSE, MODELS, SPARSITIES, TASKS, Ground, Point
from eval.science.pairs import best_random, pair, retained
from eval.science.published import (
    DENSE_ACCURACY,
    PAPER_METHOD,
    PAPER_MODEL,
    PAPER_TASK,
    RANDOM_METHODS,
    published_retention,
)
from eval.science.reading import read

Grounds = Mapping[tuple[str, str], Ground]

# Retention that was hoped for, of coder-1.5b: without training, and after it.
AIM = {0.1: 0.98, 0.2: 0.93, 0.3: 0.85, 0.35: 0.75}
TRAINED_AIM = {0.1: 0.99, 0.2: 0.97, 0.3: 0.92, 0.35: 0.85}
NOT_MEASURED = "–"  # noqa: RUF001
NOTHING_YET = "*Not measured yet.*"


def retention(grounds: Grounds) -> str:
    """Share of the dense model's accuracy that each method keeps, everywhere."""
    rows = [
        [
            f"{PAPER_MODEL} at {PAPER_TASK}",
            name,
            f"{DENSE_ACCURACY:.1%}",
            *(f"{published_retention(sparsity, trained=trained):.0%}" for sparsity in SPARSITIES),
        ]
        for name, trained in (("published", False), ("published, fine-tuned", True))
    ]
    for (model, task), ground in grounds.items():
        if ground.dense is None:
            rows.append([f"{model} at {task}", *[NOT_MEASURED] * (2 + len(SPARSITIES))])
            continue
        for method in ground.methods:
            if {point.sparsity for point in ground.of(method)} == {0.0}:
                continue  # the dense model once more, in other numbers
            kept = [_kept(ground, ground.points.get((method, sparsity))) for sparsity in SPARSITIES]
            rows.append([f"{model} at {task}", method, f"{ground.dense.score.accuracy:.1%}", *kept])
    for name, aim in (("*the aim*", AIM), ("*the aim, trained*", TRAINED_AIM)):
        rows.append([f"*{PAPER_MODEL}*", name, "", *(f"*{aim[sparsity]:.0%}*" for sparsity in SPARSITIES)])
    return _table(["", "method", "dense", *(f"{sparsity:.0%} removed" for sparsity in SPARSITIES)], rows)


def cells(ground: Ground) -> str:
    """Everything about one model at one task, a line for each method and sparsity."""
    if not ground.points:
        return NOTHING_YET
    rows = [_row(ground, point) for method in (DENSE, *ground.methods) for point in ground.of(method)]
    return _table(
        ["method", "removed", "solved", "kept", "against the paper's score", "against random", "no end"], rows
    )


def missing(grounds: Grounds) -> str:
    """The cells that were asked for and that nobody has measured, and evaluations that stand in no table."""
    lines = []
    for (model, task), ground in grounds.items():
        lacking = ground.missing()
        if not ground.points:
            lines.append(f"- {model} at {task}: everything")
        elif lacking:
            told = ", ".join(f"{method} at {sparsity:g}" for method, sparsity in lacking)
            lines.append(f"- {model} at {task}: {told}")
        for point in ground.left_out:
            is_there = (point.method, point.sparsity) in ground.points
            way_on = "remove it, the study has that too" if is_there else "ask anew with `secateur eval`"
            lines.append(
                f"- {model} at {task}: {point.source} is left out, which another grading judged: {way_on}"
            )
    return "\n".join(lines) or "Nothing."


def sources(grounds: Grounds) -> str:
    """Where the figures come from."""
    rows = [
        [
            f"[{source.path}](studies/{source.path})",
            source.provenance.measured_at,
            f"`{source.provenance.commit}`",
            f"{source.provenance.cores} cores of {source.provenance.cpu}",
            f"torch {source.provenance.versions.get('torch')}",
        ]
        for ground in grounds.values()
        for source in ground.sources
    ]
    return _table(["results", "measured", "commit", "machine", "versions"], rows) if rows else NOTHING_YET


def _of(model: str, task: str) -> Callable[[Grounds], str]:
    return lambda grounds: cells(grounds[model, task])


PARTS: Mapping[str, Callable[[Grounds], str]] = {
    "retention": retention,
    "reading": lambda grounds: read(grounds.values()),
    "missing": missing,
    "sources": sources,
    **{f"{model} {task}": _of(model, task) for model in MODELS for task in TASKS},
}


def _row(ground: Ground, point: Point) -> list[str]:
    score = point.score
    solved = f"{score.accuracy:.1%} ({100 * score.low:.1f} to {100 * score.high:.1f})"
    against = ("", "")
    if point.method != DENSE:
        against = (
            _against(point, ground.points.get((PAPER_METHOD, point.sparsity)), (PAPER_METHOD,)),
            _against(point, best_random(ground, point.sparsity), RANDOM_METHODS),
        )
    removed = f"{point.exact_sparsity:.1%}"
    return [point.method, removed, solved, _kept(ground, point), *against, f"{score.trap_rate:.1%}"]


def _against(point: Point, other: Point | None, themselves: Sequence[str]) -> str:
    if point.method in themselves:
        return ""
    return NOT_MEASURED if other is None else str(pair(point, other))


def _kept(ground: Ground, point: Point | None) -> str:
    share = None if point is None else retained(ground, point)
    return NOT_MEASURED if share is None else f"{share:.0%}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
