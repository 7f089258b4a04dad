"""What a model answered, and prompts as it is given them. Knows chat templates; not who asks what for."""

from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answers:
    """What a model answered, in the order of the prompts.

    Attributes:
        token_ids: with the end-of-sequence token where the answer came to one.
        unfinished: how many did not come to one.
    """

    token_ids: list[list[int]]
    unfinished: int


def prompt_token_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """A user message as the model is given it: through its chat template where it has one."""
    if tokenizer.chat_template is None:
        return list(tokenizer(prompt).input_ids)
    message = {"role": "user", "content": prompt}
    ids = tokenizer.apply_chat_template([message], add_generation_prompt=True, return_dict=False)
    return list(cast("list[int]", ids))
