"""Guesses a request's next tokens from its own text: where its last tokens stood before, what followed then.

Prompt lookup (Saxena 2023; Yang et al. 2023, "Inference with Reference", arXiv 2304.04487). The network
computes the guesses as rows of the step that would compute one token, and those that it would have chosen
itself are kept: the answer stays what it was, and a step that reads all weights for one row brings several.
Knows tokens only; which requests may guess, and how much, is the scheduler's.
"""

from collections.abc import Sequence
from itertools import cycle, islice

from server.engine.request import Request

NGRAM = 3  # tokens that must agree


class Lookup:
    """The n-grams of one request."""

    def __init__(self) -> None:
        self._followers: dict[tuple[int, ...], int] = {}  # n-gram -> position of the token after it
        self._num_indexed = 0

    def guess(self, request: Request, limit: int) -> tuple[int, ...]:
        """Up to `limit` tokens that may come next; none where the last `NGRAM` tokens are new."""
        end = request.num_tokens
        self._index(request, end)
        start = self._followers.get(tuple(request.slice_tokens(end - NGRAM, end)))
        if start is None:
            return ()
        followed = request.slice_tokens(start, end)
        # Behind the end come the guesses themselves, so a text that repeats itself goes on doing so.
        return tuple(islice(cycle(followed), limit))

    def _index(self, request: Request, end: int) -> None:
        """Takes in the n-grams that end before `end`: the last one has nothing after it yet."""
        start = max(self._num_indexed, NGRAM)
        tokens = request.slice_tokens(start - NGRAM, end)
        for position in range(start, end):
            self._followers[tuple(tokens[position - start : position - start + NGRAM])] = position
        self._num_indexed = max(end, self._num_indexed)


def num_right(guesses: Sequence[int], chosen: Sequence[int]) -> int:
    """How many of `guesses`, from the first on, are what the network chose."""
    count = 0
    for guess, token in zip(guesses, chosen, strict=False):
        if guess != token:
            break
        count += 1
    return count
