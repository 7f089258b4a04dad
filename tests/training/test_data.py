"""A batch is what the chat template would make of the conversations, and only answers are learned."""

from itertools import islice

import pytest
import torch

from training.data import SYSTEM_MESSAGES, batches, turns
from training.tokenizer import train_tokenizer

CONTEXT = 400


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer((f"{p}\n{a}" for p, a in islice(turns(0), 1_000)), vocab_size=600, context=CONTEXT)


@pytest.fixture(scope="module")
def some_batches(tokenizer):
    return list(islice(batches(tokenizer, seed=0, batch_tokens=2_000, context=CONTEXT), 60))


@pytest.fixture(scope="module")
def rows(tokenizer, some_batches):
    """Of every row: its ids without padding, and those learned as an answer's and as a prompt's."""
    found = []
    for batch in some_batches:
        for i, ids in enumerate(batch.input_ids.tolist()):
            length = len(ids) - ids[::-1].index(tokenizer.eos_token_id)
            assert set(ids[length:]) <= {tokenizer.pad_token_id}
            answer, prompt = (
                batch.next_ids[i, mask[i]].tolist() for mask in (batch.in_answer, batch.in_prompt)
            )
            found.append((ids[:length], answer, prompt))
    return found


def messages(text):
    """What a ChatML text says, as the template's input."""
    parts = [part.partition("<|im_end|>")[0] for part in text.split("<|im_start|>")[1:]]
    return [dict(zip(("role", "content"), part.split("\n", 1), strict=True)) for part in parts]


def test_a_row_is_what_the_chat_template_makes_of_its_messages(tokenizer, rows):
    for ids, *_ in rows:
        chat = messages(tokenizer.decode(ids))
        templated = tokenizer.apply_chat_template(chat, return_dict=False)
        assert tokenizer.decode(templated[len(ids) :]) == "\n"
        assert templated[: len(ids)] == ids


def test_answers_are_learned_up_to_their_end_and_told_from_prompts(tokenizer, rows):
    for ids, answer, prompt in rows:
        text = tokenizer.decode(ids)
        answers = [f"{m['content']}<|im_end|>" for m in messages(text) if m["role"] == "assistant"]
        assert tokenizer.decode(answer) == "".join(answers)
        for part in answers:
            text = text.replace(f"assistant\n{part}", "assistant\n", 1)
        assert tokenizer.decode([ids[0], *prompt]) == text


def test_every_token_is_predicted_from_the_one_before(some_batches):
    for batch in some_batches:
        predicted = batch.in_answer | batch.in_prompt
        assert not bool((batch.in_answer & batch.in_prompt).any())
        assert torch.equal(
            batch.next_ids[:, :-1][predicted[:, :-1]], batch.input_ids[:, 1:][predicted[:, :-1]]
        )
        assert not bool(predicted[:, -1].any())


def test_some_conversations_are_long_and_some_have_a_system_message(tokenizer, rows):
    chats = [messages(tokenizer.decode(ids)) for ids, *_ in rows]
    assert any(len(chat) > 4 for chat in chats)
    assert {chat[0]["content"] for chat in chats if chat[0]["role"] == "system"} == set(SYSTEM_MESSAGES)


def test_batches_keep_their_limits_and_waste_little(some_batches):
    positions = [batch.input_ids.numel() for batch in some_batches]
    assert max(positions) <= 2_000
    assert all(batch.input_ids.shape[1] <= CONTEXT for batch in some_batches)
    assert sum(batch.tokens for batch in some_batches) > 0.95 * sum(positions)


def test_the_seed_decides(tokenizer, some_batches):
    def first(seed):
        return next(batches(tokenizer, seed, batch_tokens=2_000, context=CONTEXT)).input_ids

    assert torch.equal(first(0), some_batches[0].input_ids)
    assert not torch.equal(first(1), some_batches[0].input_ids)
