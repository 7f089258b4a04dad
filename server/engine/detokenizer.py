"""Token ids to text, one delta after another, up to a stop string. Knows one request, no engine.

Text is held back while it may still change: bytes of an unfinished character, and a tail that may be the
beginning of a stop string. So the deltas of a stream, joined, are the text of the whole answer.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

_PROMPT_TAIL = 8  # tokens before the answer that decide whether its first word starts with a space


class Detokenizer:
    """The text of one answer, special tokens left out.

    Args:
        tokenizer: the fast tokenizer itself.
        prompt_token_ids: what the answer continues.
        stop: strings that end the answer; neither they nor what follows is text of it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(list(prompt_token_ids[-_PROMPT_TAIL:]), skip_special_tokens=True)
        self._pending: list[int] = []  # tokens that have given no text yet
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Takes the next token; returns the text that is now certain. Sets `stopped` at a stop string."""
        self._pending.append(token_id)
        text = self._stream.step(self._tokenizer, token_id)
        if text is None:
            return ""
        self._pending.clear()
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

    def _release(self, text: str) -> str:
        text = self._held + text
        ends = [at for at in (text.find(s) for s in self._stop) if at >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)]
        held = max((_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, short of all of it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
