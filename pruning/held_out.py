"""Which prompts are held out of what is made of the others: by what they are, not by where they stand.

So a fit and a training that goes on from it hold out the same ones, whatever file, number or seed each was
given. Knows tokens.
"""

import hashlib
import json
from collections.abc import Sequence

NUM_PARTS = 10
HELD_OUT_RULE = "part 0 of 10 by the tokens of prompts"  # for keys of what depends on it


def part(prompt: Sequence[int]) -> int:
    """Which of ten parts of all prompts that there may be one belongs to, by its tokens: 0..9.

    The answers to part 0 tell how good what was made is, and nothing is made of them.
    """
    digest = hashlib.sha256(json.dumps(list(prompt)).encode()).digest()
    return int.from_bytes(digest[:8], "big") % NUM_PARTS


def held_out(prompt: Sequence[int]) -> bool:
    """Whether it is of part 0."""
    return part(prompt) == 0
