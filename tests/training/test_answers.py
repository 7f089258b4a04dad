"""Padded batches of a transformers model answer as it would one prompt at a time."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruning.chat_prompts import prompt_token_ids
from pruning.checkpoints.checkpoint import Checkpoint, open_checkpoint
from tests.tiny import tiny_checkpoint
from training import answers as answers_module
from training.answers import own_answers

PROMPTS = ("one and one", "2 + 3 * 4 =", "a much longer question than the other two")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", "qwen2")
    return open_checkpoint(str(path), path)


def load(checkpoint: Checkpoint) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoint.path).eval().requires_grad_(False)


def greedy(model: Any, prompt: list[int], max_new_tokens: int, eos: int) -> list[int]:
    """The plainest possible decoding: the whole sequence again for every token."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_new_tokens:
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] == eos:
            break
    return tokens[len(prompt) :]


@pytest.mark.parametrize("rows", [1, 2, 64])
def test_answers_are_greedy_whatever_the_batch(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(answers_module, "MAX_ROWS", rows)
    model = load(checkpoint)
    model.generation_config.repetition_penalty = 5.0  # as checkpoints bring along
    prompts = [prompt_token_ids(checkpoint.tokenizer(), prompt) for prompt in PROMPTS]
    first = greedy(model, prompts[0], 12, eos=-1)
    eos = first[4]  # a token that the model does come to
    model.generation_config.eos_token_id = [eos]
    expected = [greedy(model, prompt, 12, eos) for prompt in prompts]

    answers = own_answers(model, prompts, 12, progress=False)

    assert answers.token_ids == expected
    assert answers.unfinished == sum(answer[-1] != eos for answer in expected)
    assert len(answers.token_ids[0]) == first.index(eos) + 1


def test_the_head_is_never_handed_a_slice(checkpoint: Checkpoint) -> None:
    model, contiguous = load(checkpoint), []
    model.lm_head.register_forward_hook(lambda _, args, out: contiguous.append(args[0].is_contiguous()))
    own_answers(model, [[5, 6, 7], [8, 9]], 3, progress=False)

    assert contiguous == [True] * 3
    assert not model.lm_head._forward_pre_hooks
