"""Made-up outcomes for the tests of whoever judges them."""

import random
from collections.abc import Iterator

from eval.probing.verdicts import Outcome
from eval.traps import Trap


def outcomes(
    count: int,
    *,
    drop: float = 0.0,
    regained: float = 0.01,
    accuracy: float = 0.95,
    seed: int = 0,
    of: int = 0,
) -> Iterator[Outcome]:
    """`count` outcomes of a variant that solves `drop` fewer than the reference, one a second.

    Args:
        regained: share that the variant alone solves.
        of: so many different items, drawn at random; 0: every item is new.
    """
    rng = random.Random(f"{seed}/{drop}")
    for n in range(count):
        draw = rng.random()
        if draw < drop + regained:
            correct, reference_correct = False, True
        elif draw > 1 - regained:
            correct, reference_correct = True, False
        else:
            correct = reference_correct = rng.random() < accuracy
        item = f"item/{rng.randrange(of)}" if of else f"{seed}/{drop}/{n}"
        trap = Trap.NONE if correct else Trap.LOOP_BEFORE_ANSWER
        yield Outcome(item, float(n), correct, reference_correct, trap)
