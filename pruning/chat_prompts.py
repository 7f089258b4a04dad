"""User messages as a model is given them where something is measured: the same every day.

Knows chat templates; not who asks what for.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

from jinja2 import Environment, TemplateError, meta
from transformers import PreTrainedTokenizerBase

# What chat templates that ask for the date (Llama 3's does) are told: else prompts, answers, and all that is
# kept for them would be other ones every day.
MEASUREMENT_DATE = datetime(2026, 1, 1)
# What is measured are answers of a few hundred tokens. A model that thinks first (Qwen3 does, unless it is
# told not to) would be cut off within its thoughts.
MEASUREMENT_VARIABLES: Mapping[str, Any] = {"enable_thinking": False}
_SYNTAX = Environment(extensions=["jinja2.ext.loopcontrols"])  # nothing is rendered by it
_OF_TRANSFORMERS = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")  # a tag that jinja2 does not know
_CLOCK = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


def prompt_token_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """A user message as the model is given it: through its chat template where it has one."""
    if tokenizer.chat_template is None:
        return list(tokenizer(prompt).input_ids)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        chat_template=timeless_template(tokenizer),
        add_generation_prompt=True,
        return_dict=False,
        **MEASUREMENT_VARIABLES,
    )
    return list(cast("list[int]", ids))


def template_variables(template: str) -> frozenset[str]:
    """What a chat template reads but does not set: its messages, what one may set, what it calls."""
    try:
        return frozenset(meta.find_undeclared_variables(_SYNTAX.parse(_OF_TRANSFORMERS.sub("", template))))
    except TemplateError:
        return frozenset()  # rendering it says what is wrong


def timeless_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template, with MEASUREMENT_DATE where it asks what day it is."""
    template = tokenizer.get_chat_template()
    return _CLOCK.sub(lambda found: repr(MEASUREMENT_DATE.strftime(found[2])), template)
