"""What the results say, in sentences. Every word that depends on a number is made from that number. Pure."""

from collections.abc import Iterable, Mapping

from eval.science.collect import METHODS, Ground, Point, order_and_rest
from eval.science.pairs import best_random, pair, retained
from eval.science.published import PAPER_METHOD, RANDOM_METHODS
from eval.subject import REVERSED_SUFFIX

OURS, REVERSED = METHODS[0], METHODS[-1]
COLLAPSED = 0.1  # of the dense model's accuracy

Curve = Mapping[float, Point]


def read(grounds: Iterable[Ground]) -> str:
    """One line a finding."""
    lines = [
        f"- **{ground.model} at {ground.task}**: {line}"
        for ground in grounds
        if ground.dense is not None
        for line in _findings(ground)
    ]
    return "\n".join(lines) or "*Nothing is measured yet.*"


def _findings(ground: Ground) -> Iterable[str]:
    curves = {method: {point.sparsity: point for point in ground.of(method)} for method in ground.methods}
    yield from _beside_the_paper(ground, curves[OURS], curves[PAPER_METHOD])
    yield from _beside_random(ground, curves[PAPER_METHOD])
    yield from _reversed(ground, curves[REVERSED])
    for method in ground.methods:
        if method not in METHODS and not method.endswith(REVERSED_SUFFIX):
            order, rest = order_and_rest(method)
            before = curves.get(order, {}) if rest else curves[OURS]
            yield from _in_place_of(ground, method, curves[method], before)


def _beside_the_paper(ground: Ground, ours: Curve, papers: Curve) -> Iterable[str]:
    both = [sparsity for sparsity in ours if sparsity in papers]
    if not both:
        return
    told = ", ".join(f"{_kept(ground, ours[s])} against {_kept(ground, papers[s])} at {s:.0%}" for s in both)
    pairs = {s: pair(ours[s], papers[s]) for s in both}
    shown = [s for s in both if pairs[s].is_shown_to_differ]
    where = "everywhere" if shown == both else ", ".join(f"at {s:.0%}" for s in shown) or "nowhere"
    if shown:
        where += f" (p at most {max(pairs[s].p_value for s in shown):.2g})"
    others = "".join(f", not at {s:.0%} (p = {pairs[s].p_value:.2g})" for s in both if s not in shown)
    yield (
        f"of the dense model's accuracy *{OURS}* keeps, against the paper's score, {told}. That they differ "
        f"is shown {where}{others}."
    )


def _beside_random(ground: Ground, papers: Curve) -> Iterable[str]:
    told = []
    for sparsity, point in papers.items():
        drawn = best_random(ground, sparsity)
        if drawn is None:
            continue
        found = pair(point, drawn)
        how = "better" if found.only_this > found.only_other else "worse"
        told.append(
            f"{how if found.is_shown_to_differ else 'not shown to differ'} at {sparsity:.0%} "
            f"(p = {found.p_value:.2g})"
        )
    if told:
        seeds = sum(bool(ground.of(method)) for method in RANDOM_METHODS)
        beside = f"the better of {seeds} random orders" if seeds > 1 else "a random order"
        yield f"the paper's score beside {beside}: {', '.join(told)}."


def _reversed(ground: Ground, curve: Curve) -> Iterable[str]:
    for sparsity, point in list(curve.items())[:1]:
        left = retained(ground, point)
        if left is not None:
            claim = "bears out" if left < COLLAPSED else "does not bear out"
            yield (
                f"reversed, {sparsity:.0%} removed keep {left:.0%} of it, and {point.score.trap_rate:.0%} of "
                f"the answers do not end. This {claim} that the reverse order collapses there (less than "
                f"{COLLAPSED:.0%} kept)."
            )


def _in_place_of(ground: Ground, method: str, curve: Curve, before: Curve) -> Iterable[str]:
    """Beside the same order with nothing done to it, or another order beside ours."""
    told = [
        f"{_kept(ground, point)} in place of {_kept(ground, before[sparsity])} at {sparsity:.0%} "
        f"({pair(point, before[sparsity])})"
        for sparsity, point in curve.items()
        if sparsity in before
    ]
    if told:
        yield f"*{method}* keeps {', '.join(told)}."


def _kept(ground: Ground, point: Point) -> str:
    share = retained(ground, point)
    return "–" if share is None else f"{share:.0%}"  # noqa: RUF001
