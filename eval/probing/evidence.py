"""What is kept of what probes found, and under which key.

Plain data: knows outcomes, not what they amount to (judge.py).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from eval.probing.verdicts import Outcome, Verdict, VerdictChange


@dataclass(frozen=True)
class EvidenceKey:
    """All that answers and grades depend on. Evidence for one key says nothing about another.

    Attributes:
        model: the checkpoint's fingerprint.
        ranking: the ranking's digest.
        computation: dtype, kernels and whatever else decides between two tokens that are nearly as likely or
            ends an answer; and by what criterion the verdict is reached.
        task: the task's digest.
        widths: the variant's neurons per layer.
        reference_widths: those of the variant that it is compared with; the same for the reference itself.
        delta, reference_delta: digests of what corrects each of the two, "" for nothing.
    """

    model: str
    ranking: str
    computation: str
    task: str
    widths: tuple[int, ...]
    reference_widths: tuple[int, ...]
    delta: str = ""
    reference_delta: str = ""

    @property
    def is_reference(self) -> bool:
        return (self.widths, self.delta) == (self.reference_widths, self.reference_delta)

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Record:
    """What is kept for one key.

    Attributes:
        base: the verdict before the first of `outcomes`.
        outcomes, changes: oldest first.
    """

    base: Verdict = Verdict.UNPROVEN
    outcomes: tuple[Outcome, ...] = ()
    changes: tuple[VerdictChange, ...] = ()


@dataclass(frozen=True)
class Entry:
    """What is new about one key.

    Attributes:
        base: the verdict before the first of the outcomes that are kept.
        num_kept: outcomes kept, the newest ones; older ones are deleted.
    """

    key: EvidenceKey
    base: Verdict
    num_kept: int
    outcomes: Sequence[Outcome]
    changes: Sequence[VerdictChange] = field(default=())


@dataclass(frozen=True)
class GuardAnswer:
    """How near a variant was to the reference, over the tokens of one answer to a guard prompt.

    Attributes:
        at: when, in seconds since the epoch.
        agreements: tokens that both find likeliest.
        kl_nats: sum over the tokens of the divergence.
    """

    at: float
    tokens: int
    agreements: int
    kl_nats: float
