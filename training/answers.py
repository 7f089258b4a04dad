"""Lets a transformers model answer prompts greedily, pruned or not: what the engine's answers are held to.

Padded batches wait for their longest answer; who needs many asks the engine
(server/loading/dense_answers.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel

from pruning.calibration.answers import Answers
from pruning.calibration.batches import grouped
from pruning.checkpoints.architectures import architecture_of, eos_token_ids

KV_BYTES = 2**30  # for one batch
MAX_ROWS = 64


def own_answers(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, progress: bool
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


def _generate(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
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
def _contiguous_head_input(model: PreTrainedModel) -> Iterator[None]:
    """Keeps torch from copying the head's matrix once for each row of a batch.

    That is how it multiplies a slice, which transformers hands the head after a prompt, by a frozen matrix:
    2 GB for eight rows of a model of 0.5 billion parameters.
    """
    hook = cast("Any", model).lm_head.register_forward_pre_hook(lambda _, inputs: inputs[0].contiguous())
    try:
        yield
    finally:
        hook.remove()
