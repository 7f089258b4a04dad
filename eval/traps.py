"""Answers that do not end: told from each other when they are cut off, and noticed while they run.

The degeneration of pruned models that arXiv 2604.27115 describes. Pure: sees token ids or text, knows
nothing of engines or tasks.
"""

import re
from collections import deque
from collections.abc import Callable
from enum import Enum

MAX_PERIOD = 128  # the longest phrase, in tokens, whose repetition is seen
# While an answer runs, a wrong alarm would cut off a good answer: a table of zeros, a ruled line. A loop
# never ends by itself, so waiting costs a few hundred tokens at most.
RUNNING_TOKENS, RUNNING_REPEATS = 256, 5
# An answer that was cut off by its length has something wrong with it anyway.
CUT_OFF_TOKENS, CUT_OFF_REPEATS = 32, 4
_UNITS = re.compile(r"\w+|\s+|[^\w\s]")


class Trap(str, Enum):
    """How an answer failed to end."""

    NONE = "none"
    MISSING_STOP = "missing_stop"  # went on to its length limit, without repeating itself
    LOOP_AFTER_ANSWER = "loop_after_answer"  # the paper's type 1: a complete answer, then a loop
    LOOP_BEFORE_ANSWER = "loop_before_answer"  # type 2: a loop, and no complete answer


class LoopDetector:
    """Follows one answer, token by token, and tells when its end repeats itself.

    A loop is a phrase of at most `MAX_PERIOD` tokens, repeated word for word up to the last token. Work per
    token is bounded by how often the token occurred among the last `MAX_PERIOD` ones: a handful in text.
    """

    def __init__(self) -> None:
        self._count = 0
        self._window: deque[int] = deque()  # the last MAX_PERIOD tokens
        self._places: dict[int, deque[int]] = {}  # token -> where it stands in the window, oldest first
        self._matched: dict[int, int] = {}  # period -> how many tokens up to here equal those a period before
        self._looping = False

    def push(self, token_id: int) -> bool:
        """Takes the next token; True once the answer is a loop and should be ended, and ever after.

        That takes 256 tokens and five times the same phrase. A hundred zeros with commas, an eight by eight
        table of zeros, a ruled line of 200 dashes are none.
        """
        place, matched = self._count, self._matched
        earlier = self._places.setdefault(token_id, deque())
        self._matched = {place - then: matched.get(place - then, 0) + 1 for then in earlier}
        self._looping = self._looping or self._repeats(RUNNING_TOKENS, RUNNING_REPEATS)
        earlier.append(place)
        self._window.append(token_id)
        self._count += 1
        if len(self._window) > MAX_PERIOD:
            self._forget(self._window.popleft())
        return self._looping

    @property
    def looping_when_cut_off(self) -> bool:
        """Whether an answer that has reached its length limit here ends in a loop.

        32 tokens and four times the same phrase are enough to say so of an answer that did not end.
        """
        return self._looping or self._repeats(CUT_OFF_TOKENS, CUT_OFF_REPEATS)

    def _repeats(self, tokens: int, repeats: int) -> bool:
        return any(
            run + period >= tokens and run + period >= repeats * period
            for period, run in self._matched.items()
        )

    def _forget(self, token_id: int) -> None:
        places = self._places[token_id]
        places.popleft()
        if not places:
            del self._places[token_id]


def classify(
    text: str,
    finish_reason: str,
    answered: Callable[[str], bool] | None = None,
    *,
    looping: bool | None = None,
) -> Trap:
    """The trap that a finished answer fell into.

    An answer that stopped by itself is none, whatever it says. One that its client limited to a few tokens
    counts as `MISSING_STOP`, for it did not end either.

    Args:
        finish_reason: "loop" where it was ended as a loop, "length" where it was cut off; others are no trap.
        answered: whether a text holds a complete answer (`Task.answered`); None: nothing is taken for one.
        looping: what `LoopDetector.looping_when_cut_off` said; None: judged by the words of `text`.
    """
    if finish_reason not in ("length", "loop"):
        return Trap.NONE
    if finish_reason == "length" and not (_text_loops(text) if looping is None else looping):
        return Trap.MISSING_STOP
    return Trap.LOOP_AFTER_ANSWER if answered and answered(text) else Trap.LOOP_BEFORE_ANSWER


def _text_loops(text: str) -> bool:
    """As the detector judges a cut-off answer, with words, spaces and signs for tokens."""
    detector, ids = LoopDetector(), dict[str, int]()
    for unit in _UNITS.findall(text)[:-1]:  # the last word may have been cut in half
        detector.push(ids.setdefault(unit, len(ids)))
    return detector.looping_when_cut_off
