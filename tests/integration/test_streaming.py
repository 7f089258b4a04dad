"""What is streamed is what is not: the same bytes, in frames that any reader of events takes."""

import json
from typing import Any

import httpx
import pytest

from server.engine.detokenizer import Detokenizer
from tests.integration.live import Tiny, running
from tests.integration.sse import chunks, events

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"

SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.5, "seed": 3},
    {"temperature": 1.0, "seed": 4, "n": 3},
    {"temperature": 1.2, "seed": 5, "stop": ["a", "e", "\ufffd\ufffd"]},
    {"temperature": 0.8, "seed": 6, "repetition_penalty": 1.3, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 1.0, "seed": 7, "logit_bias": {str(token): 8 for token in range(130, 230)}},
]


def completion_texts(told: list[dict[str, Any]]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for chunk in told:
        for choice in chunk["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return texts


def chat_texts(told: list[dict[str, Any]]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for chunk in told:
        for choice in chunk["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["delta"].get("content", "")
    return texts


def finish_reasons(told: list[dict[str, Any]]) -> dict[int, str]:
    choices = [choice for chunk in told for choice in chunk["choices"]]
    return {choice["index"]: choice["finish_reason"] for choice in choices if choice["finish_reason"]}


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_completions_stream_what_they_would_say_whole(client: httpx.Client, sampling: dict[str, Any]) -> None:
    body = {"prompt": ["Once upon", "2 + 2 ="], "max_tokens": 60, "sparsity": 0.1, **sampling}
    whole = client.post(COMPLETIONS, json=body).json()
    told = chunks(client, COMPLETIONS, body)
    assert completion_texts(told) == {choice["index"]: choice["text"] for choice in whole["choices"]}
    assert finish_reasons(told) == {c["index"]: c["finish_reason"] for c in whole["choices"]}
    assert len(whole["choices"]) == 2 * sampling.get("n", 1)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_chats_stream_what_they_would_say_whole(client: httpx.Client, sampling: dict[str, Any]) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße 🙂?"}]
    body = {"messages": messages, "max_tokens": 60, "model": "tiny:s20", **sampling}
    whole = client.post(CHAT, json=body).json()
    told = chunks(client, CHAT, body)
    assert chat_texts(told) == {c["index"]: c["message"]["content"] for c in whole["choices"]}
    assert finish_reasons(told) == {c["index"]: c["finish_reason"] for c in whole["choices"]}
    firsts = {c["index"]: c["delta"] for chunk in reversed(told) for c in chunk["choices"]}
    assert all(first["role"] == "assistant" for first in firsts.values())


@pytest.mark.parametrize(
    ("path", "prompt"),
    [(COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": [{"role": "user", "content": "a"}]})],
)
def test_every_chunk_belongs_to_one_answer_and_the_first_says_what_was_applied(
    client: httpx.Client, path: str, prompt: dict[str, Any]
) -> None:
    body = {**prompt, "max_tokens": 8, "sparsity": 0.2, "temperature": 0, "ignore_eos": True}
    whole = client.post(path, json=body)
    told = chunks(client, path, body)
    assert len({chunk["id"] for chunk in told}) == len({chunk["created"] for chunk in told}) == 1
    assert {chunk["model"] for chunk in told} == {"tiny:s20"} == {whole.json()["model"]}
    applied = {"variant": "tiny:s20", "sparsity": 0.2, "exact_sparsity": 1 - 152 / 192, "reason": "requested"}
    assert told[0]["secateur"] == whole.json()["secateur"] == pytest.approx(applied)
    assert not any("secateur" in chunk for chunk in told[1:])
    assert whole.headers["x-secateur-variant"] == "tiny:s20"
    assert not any("usage" in chunk for chunk in told)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_usage_comes_last_where_asked_for(client: httpx.Client, path: str) -> None:
    prompt = {"prompt": "abc"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "abc"}]}
    body = {**prompt, "max_tokens": 5, "ignore_eos": True, "n": 2}
    whole = client.post(path, json=body).json()
    told = chunks(client, path, {**body, "stream_options": {"include_usage": True}})
    *before, last = told
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 10
    assert last["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 10
    assert not any("usage" in chunk for chunk in before)


def test_logprobs_are_told_for_every_token_streamed_or_not(client: httpx.Client) -> None:
    body = {"prompt": "abc", "max_tokens": 12, "temperature": 0, "ignore_eos": True, "logprobs": 3}
    whole = client.post(COMPLETIONS, json=body).json()["choices"][0]["logprobs"]
    parts = [c["logprobs"] for chunk in chunks(client, COMPLETIONS, body) for c in chunk["choices"]]
    for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [entry for part in parts for entry in part[field]] == whole[field]
        assert len(whole[field]) == 12
    assert whole["text_offset"] == [sum(map(len, whole["tokens"][:i])) for i in range(12)]

    messages = [{"role": "user", "content": "abc"}]
    body = {"messages": messages, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    body |= {"logprobs": True, "top_logprobs": 3}
    content = client.post(CHAT, json=body).json()["choices"][0]["logprobs"]["content"]
    streamed = [
        entry
        for chunk in chunks(client, CHAT, body)
        for choice in chunk["choices"]
        for entry in choice["logprobs"]["content"]
    ]
    assert streamed == content
    assert len(content) == 12
    for entry in content:
        best = entry["top_logprobs"][0]  # greedy: the likeliest was taken
        assert (entry["token"], entry["logprob"]) == (best["token"], best["logprob"])
        if entry["bytes"] is not None:
            assert bytes(entry["bytes"]).decode() == entry["token"]


def test_line_ends_in_the_text_do_not_break_the_frames(client: httpx.Client) -> None:
    newline, carriage_return = client.post("/tokenize", json={"prompt": "\n\r"}).json()["tokens"]
    bias = {str(newline): 100, str(carriage_return): 100}
    body = {"prompt": "a", "max_tokens": 30, "seed": 1, "temperature": 2, "logit_bias": bias}
    told = chunks(client, COMPLETIONS, body)
    text = completion_texts(told)[0]
    assert set(text) == {"\n", "\r"}
    assert text == client.post(COMPLETIONS, json=body).json()["choices"][0]["text"]


def test_a_character_is_never_split(client: httpx.Client) -> None:
    first, second = client.post("/tokenize", json={"prompt": "é"}).json()["tokens"]
    body = {"prompt": "a", "max_tokens": 40, "seed": 2, "temperature": 2}
    body["logit_bias"] = {str(first): 100, str(second): 100}
    data = events(client, COMPLETIONS, body)[:-1]
    deltas = [choice["text"] for line in data for choice in json.loads(line)["choices"]]
    assert "é" in "".join(deltas)
    assert "".join(deltas) == client.post(COMPLETIONS, json=body).json()["choices"][0]["text"]


def test_choices_with_a_seed_differ_and_repeat(client: httpx.Client) -> None:
    body = {"prompt": "abc", "max_tokens": 20, "n": 3, "seed": 11, "temperature": 1.5}
    texts = [[c["text"] for c in client.post(COMPLETIONS, json=body).json()["choices"]] for _ in range(2)]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3


def test_a_fault_of_our_own_is_the_last_event(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not a connection that breaks off without a word."""
    with running(tiny) as live, live.client() as client:
        monkeypatch.setattr(Detokenizer, "push", lambda *_: 1 / 0)
        with client.stream("POST", COMPLETIONS, json={"prompt": "abc", "stream": True}) as response:
            lines = [line for line in response.iter_lines() if line]
        monkeypatch.undo()
        assert client.post(COMPLETIONS, json={"prompt": "abc", "max_tokens": 2}).status_code == 200
    told = json.loads(lines[-1].removeprefix("data: "))["error"]
    assert told["code"] == "internal_error"
    assert "division" not in lines[-1]
    assert "a stream ended by a fault of the server's own" in caplog.text
