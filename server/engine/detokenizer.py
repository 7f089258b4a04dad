"""Token ids to text, one delta after another, up to a stop string. Knows one request, no engine.

Text is held back while it may still change: bytes of an unfinished character, and a tail that may be the
beginning of a stop string. So the deltas of a stream, joined, are the text of the whole answer.
"""

import logging
from collections.abc import Sequence
from functools import lru_cache
from itertools import takewhile

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

logger = logging.getLogger(__name__)

# Tokens before the answer that decide whether its first word starts with a space; more where the tail would
# begin within a character, of which each byte may be a token.
_PROMPT_TAIL, _LONGEST_TAIL = 8, 11
_UNFINISHED = "\ufffd"  # what a part of a character decodes to
# So many tokens without text are waited for, since a stream decodes all of them at each step. The last ones
# may still become a character, of at most four bytes.
_MOST_PENDING, _LONGEST_CHARACTER = 32, 4


class Detokenizer:
    """The text of one answer, special tokens left out.

    Args:
        tokenizer: the fast tokenizer itself.
        prompt_token_ids: what the answer continues.
        stop: strings that end the answer; neither they nor what follows is text of it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._textless = _special_token_ids(tokenizer)
        self._stream, self._repeated = _begin(tokenizer, prompt_token_ids)
        self._pending: list[int] = []  # tokens that have given no text yet
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Takes the next token; returns the text that is now certain. Sets `stopped` at a stop string."""
        if token_id in self._textless:
            return ""
        self._pending.append(token_id)
        try:
            text = self._stream.step(self._tokenizer, token_id)
        except Exception:  # tokenizers has no other; what was text has become half a character again
            logger.debug(
                "a token does not go on with what came before it: the text begins anew", exc_info=True
            )
            text = self._tokenizer.decode(self._pending, skip_special_tokens=True)
            self._stream = DecodeStream([token_id], skip_special_tokens=True)
        if text is None:
            return self._give_up_waiting() if len(self._pending) > _MOST_PENDING else ""
        self._pending.clear()
        pairs = zip(text, self._repeated, strict=False)
        text, self._repeated = text[sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)) :], ""
        return self._release(text)

    def flush(self) -> str:
        """What is left when the answer has ended otherwise than by a stop string."""
        # An answer may end inside a character; what there is of it decodes to a replacement character.
        text = self._release(self._tokenizer.decode(self._pending, skip_special_tokens=True))
        self._pending.clear()
        if self.stopped:
            return text
        held, self._held = self._held, ""
        return text + held

    def _give_up_waiting(self) -> str:
        """Text of the tokens that no longer can be the beginning of a character."""
        self._repeated = ""
        ended, self._pending = self._pending[:-_LONGEST_CHARACTER], self._pending[-_LONGEST_CHARACTER:]
        self._stream = DecodeStream(skip_special_tokens=True)
        for token_id in self._pending:
            self._stream.step(self._tokenizer, token_id)
        return self._release(self._tokenizer.decode(ended, skip_special_tokens=True))

    def _release(self, text: str) -> str:
        text = self._held + text
        ends = [at for at in (text.find(s) for s in self._stop) if at >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)]
        held = max((_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _begin(tokenizer: Tokenizer, prompt: Sequence[int]) -> tuple[DecodeStream, str]:
    """A stream that goes on after `prompt`, and what its first text may begin with that is the prompt's.

    A prompt may end inside a character, which the answer goes on with. The stream takes no such prefix, and
    would give it back with the answer; but it takes what stands before, and the rest as if it were answered.
    """
    tail, whole = list[int](), 0
    for length in range(_PROMPT_TAIL, _LONGEST_TAIL + 1):
        longer = list(prompt[-length:])
        found = _whole_tokens(tokenizer, longer)
        if found == len(longer) or not whole:
            tail, whole = longer, found
        if found == len(longer):
            break
    stream = DecodeStream(tail[:whole], skip_special_tokens=True)
    for token_id in tail[whole:]:
        stream.step(tokenizer, token_id)
    return stream, tokenizer.decode(tail[whole:], skip_special_tokens=True)


def _whole_tokens(tokenizer: Tokenizer, tail: list[int]) -> int:
    """How many of the first of `tail` end with a whole character."""
    whole = len(tail)
    while whole and tokenizer.decode(tail[:whole], skip_special_tokens=True).endswith(_UNFINISHED):
        whole -= 1
    return whole


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, short of all of it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if stop[length - 1] == text[-1] and text.endswith(stop[:length]):
            return length
    return 0


@lru_cache(maxsize=1)
def _special_token_ids(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special)
