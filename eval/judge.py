"""Keeps the evidence about one variant up to date, outcome by outcome, and says when the verdict changes.

Pure: its state is a function of the outcomes pushed, so that pushing the stored ones again restores it.
"""

from collections import Counter, deque

from eval.sequential import ChangeDetector, Differences, SafetyTest, drop_bounds, likeliest_start
from eval.statistics import wilson_interval
from eval.traps import Trap
from eval.verdicts import Criterion, Evidence, Outcome, Verdict, VerdictChange

# Evidence rests on the last 4,000 to 8,000 outcomes: enough for a weak model's verdict, and after that the
# past is past. A new span of evidence begins every 4,000, and takes over when it is 4,000 old.
SPAN_OUTCOMES = 4_000
TAIL_OUTCOMES = 1_000  # as far back as the reason for a change of verdict is looked for


class Judge:
    """The verdict on one variant.

    - `UNPROVEN` becomes `SAFE` when the drop is shown to be within the tolerance.
    - Both become `DEGRADED` when it is shown to be beyond, by a test that forgets how good the past was.
      All evidence then starts anew.
    - `DEGRADED` becomes `SAFE` by the mirror image of that test. Evidence starts anew again.
    - `SAFE` lapses to `UNPROVEN` when a new span of evidence takes over that has not shown it again.

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
        for span in self._spans:
            span.push(outcome)
        rolled = self._roll()
        after = self._judge(rolled)
        if after is self.verdict:
            return None
        degraded = Verdict.DEGRADED in (self.verdict, after)
        self._since = outcome.at
        evidence = self._grounds(after) if degraded else self._evidence_of(self._spans[0], after)
        change = VerdictChange(outcome.at, self.verdict, after, evidence)
        self.verdict = after
        if degraded:
            self.base = after
            self._start_anew()
        return change

    def resume(self, since: float | None) -> None:
        """Sets since when the verdict stands, after pushing stored outcomes again."""
        self._since, self._evidence = since, None

    def evidence(self) -> Evidence:
        """Costs a fraction of a millisecond after an outcome, nothing until the next."""
        if self._evidence is None:
            self._evidence = self._evidence_of(self._spans[0], self.verdict)
        return self._evidence

    def has_seen(self, item_id: str) -> bool:
        """Whether another answer to the item would be no new evidence."""
        return item_id in self._spans[0].seen

    @property
    def num_kept(self) -> int:
        """How many of the last outcomes restore all this, pushed to a new judge that starts at `base`."""
        return self._spans[0].outcomes

    def _start_anew(self) -> None:
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
        if any(span.change.found for span in self._spans):
            return Verdict.SAFE if self.verdict is Verdict.DEGRADED else Verdict.DEGRADED
        if self.verdict is Verdict.UNPROVEN and any(span.safety.safe for span in self._spans):
            return Verdict.SAFE
        if self.verdict is Verdict.SAFE and rolled and not self._spans[0].safety.safe:
            return Verdict.UNPROVEN
        return self.verdict

    def _grounds(self, after: Verdict) -> Evidence:
        """Of the outcomes since the likeliest moment that the variant broke, or was mended."""
        tail = list(self._tail)
        start = likeliest_start(
            [_difference(outcome) for outcome in tail],
            self._criterion.tolerance,
            beyond=after is Verdict.DEGRADED,
        )
        span = self._new_span()
        for outcome in tail[start:]:
            span.push(outcome)
        return self._evidence_of(span, after)

    def _evidence_of(self, span: "_Span", verdict: Verdict) -> Evidence:
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
        )


class _Span:
    """What the outcomes from some moment on amount to."""

    def __init__(self, criterion: Criterion, *, degraded: bool) -> None:
        self.outcomes = 0
        self.seen: set[str] = set()
        self.differences = Differences()
        self.solved = 0
        self.traps: Counter[Trap] = Counter()
        self.safety = SafetyTest(criterion.tolerance, criterion.confidence)
        self.change = ChangeDetector(criterion.tolerance, criterion.confidence, beyond=not degraded)

    def push(self, outcome: Outcome) -> None:
        self.outcomes += 1
        difference = _difference(outcome)
        if outcome.item_id in self.seen:
            self.change.push(difference, expected=self.differences.mean)
            return
        self.seen.add(outcome.item_id)
        self.differences.add(difference)
        self.solved += outcome.correct
        if outcome.trap is not Trap.NONE:
            self.traps[outcome.trap] += 1
        self.safety.push(difference)
        self.change.push(difference)


def _difference(outcome: Outcome) -> int:
    return outcome.reference_correct - outcome.correct
