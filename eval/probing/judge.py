"""Keeps the evidence about one variant up to date, outcome by outcome, and says when the verdict changes.

Pure: its state is a function of the outcomes pushed, so that pushing the stored ones again restores it.
"""

from collections import Counter, deque

from eval.probing.sequential import (
    AbilityWatch,
    ChangeDetector,
    Differences,
    SafetyTest,
    drop_bounds,
    likeliest_start,
)
from eval.probing.verdicts import Criterion, Evidence, Outcome, Verdict, VerdictChange
from eval.statistics import wilson_interval
from eval.traps import Trap

# Evidence rests on the last 4,000 to 8,000 outcomes: enough for a weak model's verdict, and after that the
# past is past. A new span of evidence begins every 4,000, and takes over when it is 4,000 old.
SPAN_OUTCOMES = 4_000
TAIL_OUTCOMES = 1_000  # as far back as the reason for a change of verdict is looked for


class Judge:
    """The verdict on one variant.

    - `UNPROVEN` becomes `SAFE` when the drop is shown to be within the tolerance, and the reference to solve
      enough for that to say something (`Criterion.least_accuracy`).
    - Both become `DEGRADED` when it is shown to be beyond, by a test that forgets how good the past was.
      All evidence then starts anew.
    - `DEGRADED` becomes `SAFE` by the mirror image of that test. Evidence starts anew again.
    - `SAFE` lapses to `UNPROVEN` when a new span of evidence takes over that has not shown it again, or when
      the reference is shown to solve too little by now. When it is able again, evidence starts anew: in the
      meantime there was nothing to lose.

    Args:
        verdict: where it stands before the first outcome pushed.
        is_reference: it is the dense reference itself, safe by definition.
    """

    def __init__(
        self, criterion: Criterion, *, verdict: Verdict = Verdict.UNPROVEN, is_reference: bool = False
    ) -> None:
        self.verdict = self.base = Verdict.SAFE if is_reference else verdict
        self._criterion = criterion
        self._is_reference = is_reference
        self._since: float | None = None
        self._updated_at: float | None = None
        self._tail: deque[Outcome] = deque(maxlen=TAIL_OUTCOMES)
        self._evidence: Evidence | None = None
        self._start_anew()

    def push(self, outcome: Outcome) -> VerdictChange | None:
        """Takes the next outcome; what changed by it, if anything did."""
        self._updated_at, self._evidence = outcome.at, None
        self._tail.append(outcome)
        unable = [span for span in self._spans if span.ability.able is False]
        for span in self._spans:
            span.push(outcome)
        if any(span.ability.able for span in unable):
            self._start_anew()
            return None
        rolled = self._roll()
        after = self._judge(rolled)
        if after is self.verdict:
            return None
        self._since = outcome.at
        change = VerdictChange(outcome.at, self.verdict, after, self._grounds(after))
        anew = Verdict.DEGRADED in (self.verdict, after)
        self.verdict = after
        if anew:
            self._start_anew()
        return change

    def resume(self, since: float | None) -> None:
        """Sets since when the verdict stands, after pushing stored outcomes again."""
        self._since, self._evidence = since, None

    def evidence(self) -> Evidence:
        """Costs a fraction of a millisecond after an outcome, nothing until the next."""
        if self._evidence is None:
            is_proven = self.verdict is Verdict.SAFE and not self._is_reference
            nothing_to_lose = not is_proven and any(span.lacks_ability for span in self._spans)
            self._evidence = self._evidence_of(self._spans[0], self.verdict, nothing_to_lose=nothing_to_lose)
        return self._evidence

    def has_seen(self, item_id: str) -> bool:
        """Whether another answer to the item would be no new evidence."""
        return item_id in self._spans[0].seen

    @property
    def num_kept(self) -> int:
        """How many of the last outcomes restore all this, pushed to a new judge that starts at `base`."""
        return self._spans[0].outcomes

    def _start_anew(self) -> None:
        self.base = self.verdict
        self._tail.clear()
        self._spans = [self._new_span()]

    def _new_span(self) -> "_Span":
        return _Span(self._criterion, degraded=self.verdict is Verdict.DEGRADED)

    def _roll(self) -> bool:
        """Begins a span, and drops the oldest, when it is time; True where one was dropped."""
        if self._spans[-1].outcomes < SPAN_OUTCOMES:
            return False
        rolled = len(self._spans) == 2
        self._spans = [self._spans[-1], self._new_span()]
        if rolled and self.verdict is not Verdict.DEGRADED and not self._is_reference:
            self.base = Verdict.UNPROVEN
        return rolled

    def _judge(self, rolled: bool) -> Verdict:
        if self._is_reference:
            return Verdict.SAFE
        if self.verdict is not Verdict.DEGRADED and any(span.change.found for span in self._spans):
            return Verdict.DEGRADED
        is_unable = any(span.ability.able is False for span in self._spans)
        if self.verdict is Verdict.SAFE:
            has_lapsed = is_unable or (rolled and not self._spans[0].shows_safety)
            return Verdict.UNPROVEN if has_lapsed else Verdict.SAFE
        if not is_unable and any(span.shows_safety for span in self._spans):
            return Verdict.SAFE
        return self.verdict

    def _grounds(self, after: Verdict) -> Evidence:
        """What a change of verdict rests on."""
        if Verdict.DEGRADED in (self.verdict, after):
            beyond, drops = after is Verdict.DEGRADED, [_difference(outcome) for outcome in self._tail]
            start = likeliest_start(drops, self._criterion.tolerance, beyond=beyond)
            return self._evidence_of(self._span_from(start), after)
        if any(span.ability.able is False for span in self._spans):
            solved = [int(outcome.reference_correct) for outcome in self._tail]
            start = likeliest_start(solved, self._criterion.least_accuracy, beyond=False)
            return self._evidence_of(self._span_from(start), after, nothing_to_lose=True)
        return self._evidence_of(self._spans[0], after)

    def _span_from(self, start: int) -> "_Span":
        """The last outcomes, from the likeliest moment on that something broke or was mended."""
        span = self._new_span()
        for outcome in list(self._tail)[start:]:
            span.push(outcome)
        return span

    def _evidence_of(self, span: "_Span", verdict: Verdict, *, nothing_to_lose: bool = False) -> Evidence:
        items = span.differences.items
        low, high = wilson_interval(span.solved, items, self._criterion.confidence) if items else (0.0, 1.0)
        bounds = drop_bounds(span.differences, self._criterion.confidence)
        return Evidence(
            verdict=verdict,
            since=self._since,
            items=items,
            repeats=span.outcomes - items,
            updated_at=self._updated_at,
            accuracy=span.solved / items if items else None,
            accuracy_low=low,
            accuracy_high=high,
            drop=span.differences.mean if items else None,
            drop_low=0.0 if self._is_reference else bounds[0],
            drop_high=0.0 if self._is_reference else bounds[1],
            traps=dict(span.traps),
            reference_accuracy=span.reference_solved / items if items else None,
            nothing_to_lose=self._why_not(span) if nothing_to_lose else None,
        )

    def _why_not(self, span: "_Span") -> str:
        return (
            f"the reference solves {span.reference_solved:,} of {span.differences.items:,} items; only where "
            f"it is shown to solve more than {100 * self._criterion.least_accuracy:g}% does a tolerance of "
            f"{100 * self._criterion.tolerance:g} points say anything"
        )


class _Span:
    """What the outcomes from some moment on amount to."""

    def __init__(self, criterion: Criterion, *, degraded: bool) -> None:
        self._degraded = degraded
        self.outcomes = 0
        self.seen: set[str] = set()
        self.differences = Differences()
        self.solved = 0
        self.reference_solved = 0
        self.traps: Counter[Trap] = Counter()
        self.safety = SafetyTest(criterion.tolerance, criterion.confidence)
        self.change = ChangeDetector(criterion.tolerance, criterion.confidence, beyond=not degraded)
        self.ability = AbilityWatch(criterion.least_accuracy, criterion.confidence)

    @property
    def shows_safety(self) -> bool:
        return self._is_within and self.ability.able is True

    @property
    def lacks_ability(self) -> bool:
        """Whether the reference is what stands in safety's way."""
        return self.ability.able is False or (self._is_within and self.ability.able is None)

    @property
    def _is_within(self) -> bool:
        """Whether the drop is shown to be within the tolerance."""
        return self.change.found if self._degraded else self.safety.safe

    def push(self, outcome: Outcome) -> None:
        self.outcomes += 1
        difference = _difference(outcome)
        if outcome.item_id in self.seen:
            self.change.push(difference, expected=self.differences.mean)
            self.ability.push(
                outcome.reference_correct, expected=self.reference_solved / self.differences.items
            )
            return
        self.seen.add(outcome.item_id)
        self.differences.add(difference)
        self.solved += outcome.correct
        self.reference_solved += outcome.reference_correct
        if outcome.trap is not Trap.NONE:
            self.traps[outcome.trap] += 1
        self.safety.push(difference)
        self.change.push(difference)
        self.ability.push(outcome.reference_correct)


def _difference(outcome: Outcome) -> int:
    return outcome.reference_correct - outcome.correct
