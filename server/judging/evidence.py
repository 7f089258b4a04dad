"""What is known of a variant, as JSON: in /v1/variants, and in the error that refuses a degraded one.

Formats what is handed in; judges nothing.
"""

from typing import Any

from eval.probing.guard import GuardEvidence
from eval.probing.verdicts import Evidence, VerdictChange


def evidence_object(evidence: Evidence, now: float) -> dict[str, Any]:
    """Accuracies and drops are shares of the items; times are seconds since the epoch, as is `now`.

    `drop_low` and `drop_high` hold at all times at once; `accuracy_low` and `accuracy_high` are Wilson's, for
    one look.
    """
    return {
        "verdict": evidence.verdict.value,
        "since": evidence.since,
        "items": evidence.items,
        "repeats": evidence.repeats,
        "age_seconds": evidence.age_seconds(now),
        "accuracy": evidence.accuracy,
        "accuracy_low": evidence.accuracy_low,
        "accuracy_high": evidence.accuracy_high,
        "drop": evidence.drop,
        "drop_low": evidence.drop_low,
        "drop_high": evidence.drop_high,
        "trap_rate": evidence.trap_rate,
        "traps": {trap.value: count for trap, count in evidence.traps.items()},
        "reference_accuracy": evidence.reference_accuracy,
        "nothing_to_lose": evidence.nothing_to_lose,
    }


def guard_object(guard: GuardEvidence, now: float) -> dict[str, Any]:
    """Means over the tokens of the last answers to guard prompts."""
    return {
        "answers": guard.answers,
        "tokens": guard.tokens,
        "top1_agreement": guard.agreement,
        "kl_nats": guard.kl_nats,
        "age_seconds": max(0.0, now - guard.updated_at),
    }


def change_object(change: VerdictChange) -> dict[str, Any]:
    """A change of verdict, with the evidence it rests on; its age is the age at that time."""
    return {
        "at": change.at,
        "before": change.before.value,
        "after": change.after.value,
        "evidence": evidence_object(change.evidence, change.at),
    }
