"""What a model answered, and prompts as it is given them. Knows chat templates; not who asks what for."""

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from transformers import PreTrainedTokenizerBase

# What chat templates that ask for the date (Llama 3's does) are told where something is measured: else
# prompts, answers, and all that is kept for them would be other ones every day.
MEASUREMENT_DATE = datetime(2026, 1, 1)
_CLOCK = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


@dataclass(frozen=True)
class Answers:
    """What a model answered, in the order of the prompts.

    Attributes:
        token_ids: with the end-of-sequence token where the answer came to one.
        unfinished: how many did not come to one.
    """

    token_ids: list[list[int]]
    unfinished: int

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the tokens."""
        return hashlib.sha256(json.dumps(self.token_ids).encode()).hexdigest()


def prompt_token_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """A user message as the model is given it: through its chat template where it has one."""
    if tokenizer.chat_template is None:
        return list(tokenizer(prompt).input_ids)
    message = {"role": "user", "content": prompt}
    template = timeless_template(tokenizer)
    ids = tokenizer.apply_chat_template(
        [message], chat_template=template, add_generation_prompt=True, return_dict=False
    )
    return list(cast("list[int]", ids))


def timeless_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template, with MEASUREMENT_DATE where it asks what day it is."""
    template = tokenizer.get_chat_template()
    return _CLOCK.sub(lambda found: repr(MEASUREMENT_DATE.strftime(found[2])), template)
