"""Evidence made up for tests."""

from typing import Any

from eval.probing.verdicts import Evidence, Verdict
from eval.traps import Trap


def evidence(verdict: Verdict, **changes: Any) -> Evidence:
    """100 items of which 90 were solved, with bounds that fit no verdict in particular."""
    numbers: dict[str, Any] = {
        "since": 900.0,
        "items": 100,
        "repeats": 0,
        "updated_at": 1000.0,
        "accuracy": 0.9,
        "accuracy_low": 0.83,
        "accuracy_high": 0.94,
        "drop": 0.01,
        "drop_low": -0.02,
        "drop_high": 0.02,
        "traps": {Trap.MISSING_STOP: 1},
    }
    return Evidence(verdict=verdict, **{**numbers, **changes})
