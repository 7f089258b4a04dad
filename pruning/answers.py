"""Lets a transformers model answer prompts greedily. Knows chat templates; not what answers are for."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase

from pruning.architectures import architecture_of, eos_token_ids
from pruning.batches import grouped

if TYPE_CHECKING:  # takes a second and 80 MB to import; who has a model has done it
    from transformers import PreTrainedModel

KV_BYTES = 2**30  # for one batch
MAX_ROWS = 64


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


def own_answers(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], max_new_tokens: int, *, progress: bool
) -> Answers:
    """Lets the model answer every prompt greedily, in batches padded on the left.

    Sets `model.generation_config`.
    """
    assert model.generation_config is not None, "language models have one"
    eos = eos_token_ids(model.generation_config)
    # In place of the checkpoint's own, whose penalties and sampling would otherwise be taken over.
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(eos) or None, pad_token_id=0
    )
    lengths = [len(prompt) + max_new_tokens for prompt in prompts]
    token_ids: list[list[int]] = [[] for _ in prompts]
    unfinished = 0
    max_tokens = KV_BYTES // architecture_of(model.config).kv_bytes_per_token(model.dtype.itemsize)
    with (
        _contiguous_head_input(model),
        tqdm(total=len(prompts), desc="answers", unit="prompt", disable=not progress) as bar,
    ):
        for group in grouped(lengths, max_tokens, MAX_ROWS):
            generated = _generate(model, [prompts[index] for index in group])
            for index, tokens in zip(group, generated, strict=True):
                end = next((place for place, token in enumerate(tokens) if token in eos), None)
                unfinished += end is None
                token_ids[index] = tokens if end is None else tokens[: end + 1]
            bar.update(len(group))
    return Answers(token_ids, unfinished)


def _generate(model: "PreTrainedModel", prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """New tokens of each prompt; rows that end early are filled up with padding."""
    longest = max(len(prompt) for prompt in prompts)
    input_ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):  # padded on the left, so that all rows go on at the same place
        input_ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        attention_mask[row, longest - len(prompt) :] = 1
    output = cast("Any", model).generate(
        input_ids.to(model.device), attention_mask=attention_mask.to(model.device)
    )
    return cast("list[list[int]]", output[:, longest:].tolist())


@contextmanager
def _contiguous_head_input(model: "PreTrainedModel") -> Iterator[None]:
    """Keeps torch from copying the head's matrix once for each row of a batch.

    That is how it multiplies a slice, which transformers hands the head after a prompt, by a frozen matrix:
    2 GB for eight rows of a model of 0.5 billion parameters.
    """
    hook = cast("Any", model).lm_head.register_forward_pre_hook(lambda _, inputs: inputs[0].contiguous())
    try:
        yield
    finally:
        hook.remove()
