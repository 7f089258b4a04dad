"""What the evidence about one variant amounts to: safe, degraded, or not proven yet.

Pure: outcomes in, a verdict and numbers out. The tests themselves are in eval/probing/sequential.py;
docs/guide/probes.md says what each number means, docs/decisions/005 why it is built so.
"""

from dataclasses import dataclass
from enum import Enum

from eval.statistics import least_accuracy
from eval.traps import Trap


class Verdict(str, Enum):
    """What is known of a variant's drop, at the confidence of its `Criterion`."""

    UNPROVEN = "unproven"
    SAFE = "safe"  # shown to be within the tolerance
    DEGRADED = "degraded"  # shown to be beyond it


@dataclass(frozen=True)
class Criterion:
    """When a variant is good enough.

    Attributes:
        tolerance: the drop in accuracy below the dense reference that is put up with, a share of the items,
            below 1/2.
        confidence: how sure `SAFE` and `DEGRADED` are.
    """

    tolerance: float = 0.03
    confidence: float = 0.95

    @property
    def name(self) -> str:
        """Verdicts by another one say something else."""
        return f"{100 * self.tolerance:g} points with {100 * self.confidence:g}%"

    @property
    def least_accuracy(self) -> float:
        """What the reference must be shown to exceed before any variant is called `SAFE`."""
        return least_accuracy(self.tolerance)


@dataclass(frozen=True)
class Outcome:
    """One item, answered by the dense reference and by a variant.

    Attributes:
        at: when, in seconds since the epoch.
        correct, reference_correct: whether the variant, and the reference, solved it.
        trap: what the variant's answer fell into.
    """

    item_id: str
    at: float
    correct: bool
    reference_correct: bool
    trap: Trap = Trap.NONE


@dataclass(frozen=True)
class Evidence:
    """What the outcomes since the evidence's start say of a variant. Shares and drops are in 0..1.

    Attributes:
        since: when the verdict was reached, in seconds since the epoch; None where it never changed.
        items: different items that the numbers below rest on.
        repeats: further answers to items seen before: they keep the evidence fresh and look for change, but
            are no new evidence for the numbers.
        updated_at: when the last outcome came, repeats included; None: never.
        accuracy, accuracy_low, accuracy_high: share of the items solved, with its Wilson interval; None
            without items.
        drop: the reference's accuracy minus the variant's, on the same items; None without items.
        drop_low, drop_high: one-sided bounds of the drop that hold at all times at once, each with the
            criterion's confidence, so that one may look whenever one likes; -1 and 1 without items.
        traps: how many of the answers fell into each trap, `Trap.NONE` left out.
        reference_accuracy: share of the items that the reference solved; None without items.
        nothing_to_lose: why no variant is called safe, where the reference solves too little for that.
    """

    verdict: Verdict
    since: float | None
    items: int
    repeats: int
    updated_at: float | None
    accuracy: float | None
    accuracy_low: float
    accuracy_high: float
    drop: float | None
    drop_low: float
    drop_high: float
    traps: dict[Trap, int]
    reference_accuracy: float | None = None
    nothing_to_lose: str | None = None

    @property
    def trap_rate(self) -> float:
        """Share of the items whose answer did not end; 0 without items."""
        return sum(self.traps.values()) / self.items if self.items else 0.0

    def age_seconds(self, now: float) -> float | None:
        """How long ago the last outcome came; `now` is in seconds since the epoch. None: never."""
        return None if self.updated_at is None else max(0.0, now - self.updated_at)


@dataclass(frozen=True)
class VerdictChange:
    """`evidence` is what the change rests on: after a demotion, the outcomes since the likeliest moment that
    the variant broke."""

    at: float
    before: Verdict
    after: Verdict
    evidence: Evidence
