"""Echoed prompts with their log-probabilities, as evaluation harnesses ask for them."""

import threading
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM

from pruning.slicing import slice_model
from server.answers import CompletionFormat
from server.engine.request import TokenLogprobs
from tests.integration.live import Live, Tiny
from tests.integration.sse import chunks

PATH = "/v1/completions"
PROMPTS = ["Once upon a time", "2 + 2 ="]
FIELDS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def near(entry: Any) -> Any:
    """Equal but for the rounding of batches of another shape."""
    return entry if isinstance(entry, str) else pytest.approx(entry, abs=1e-4)


def choices(client: httpx.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = client.post(PATH, json={"temperature": 0, "ignore_eos": True, **body})
    assert response.status_code == 200, response.text
    return response.json()["choices"]


def tokens(client: httpx.Client, text: str) -> list[int]:
    return client.post("/tokenize", json={"prompt": text}).json()["tokens"]


@pytest.mark.parametrize("sparsity", [0, 0.2])
def test_log_probabilities_of_a_prompt_are_those_of_transformers(
    live: Live, tiny: Tiny, client: httpx.Client, sparsity: float
) -> None:
    body = {"prompt": PROMPTS, "echo": True, "logprobs": 3, "max_tokens": 0, "sparsity": sparsity}
    statuses = live.generations.registry.offer().statuses
    [variant] = [s.variant for s in statuses if s.variant.sparsity == sparsity]
    model = AutoModelForCausalLM.from_pretrained(tiny.checkpoint.path, dtype=torch.float32)
    reference = slice_model(model, tiny.ranking, variant.widths).eval()
    for prompt, choice in zip(PROMPTS, choices(client, body), strict=True):
        token_ids = tokens(client, prompt)
        with torch.no_grad():
            logprobs = reference(torch.tensor([token_ids])).logits[0].log_softmax(-1)
        expected = [row[token].item() for row, token in zip(logprobs, token_ids[1:], strict=False)]
        told = choice["logprobs"]
        assert choice["text"] == prompt
        assert choice["finish_reason"] == "length"
        assert told["tokens"] == list(prompt)  # one token a byte
        assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
        assert told["token_logprobs"][1:] == pytest.approx(expected, abs=1e-4)
        for top, row in zip(told["top_logprobs"][1:], logprobs, strict=False):
            assert max(top.values()) == pytest.approx(row.max().item(), abs=1e-4)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_prompts_are_written_down_beside_the_event_loop(
    live: Live, client: httpx.Client, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """Those of a long prompt take a second, for which all streams would stop."""
    threads = set[int]()
    write = CompletionFormat._top_logprobs

    def seen(form: CompletionFormat, position: TokenLogprobs) -> dict[str, float]:
        threads.add(threading.get_ident())
        return write(form, position)

    monkeypatch.setattr(CompletionFormat, "_top_logprobs", seen)
    body = {"prompt": PROMPTS, "echo": True, "logprobs": 1, "max_tokens": 0, "stream": stream}
    assert client.post(PATH, json=body).status_code == 200
    assert threads
    assert live.thread.ident not in threads


@pytest.mark.parametrize(
    "asked",
    [
        {"logprobs": 2},
        {"logprobs": 0, "max_tokens": 1},
        {"logprobs": 1, "max_tokens": 0},
        {"n": 2, "logprobs": 1, "temperature": 1.5, "seed": 1},
        {"stop": ["a", "e", "o"], "logprobs": 1},
        {},
        {"max_tokens": 0},
    ],
    ids=str,
)
def test_an_echo_streams_what_it_would_say_whole(client: httpx.Client, asked: dict[str, Any]) -> None:
    body = {"prompt": PROMPTS, "echo": True, "max_tokens": 9, "temperature": 0, **asked}
    whole = client.post(PATH, json=body).json()["choices"]
    streamed: dict[int, dict[str, Any]] = {}
    for chunk in chunks(client, PATH, body):
        for choice in chunk["choices"]:
            one = streamed.setdefault(choice["index"], {"text": "", "logprobs": {f: [] for f in FIELDS}})
            one["text"] += choice["text"]
            one["finish_reason"] = choice["finish_reason"]
            for field, entries in (choice["logprobs"] or {}).items():
                one["logprobs"][field] += entries or []
    for choice in whole:
        one = streamed[choice["index"]]
        assert (one["text"], one["finish_reason"]) == (choice["text"], choice["finish_reason"])
        assert choice["text"].startswith(PROMPTS[choice["index"] // asked.get("n", 1)])
        if "logprobs" not in asked:
            assert choice["logprobs"] is None
            continue
        for field in FIELDS:
            entries = choice["logprobs"][field] or []
            assert one["logprobs"][field] == [entry if entry is None else near(entry) for entry in entries]
    assert len(whole) == len(streamed) == 2 * asked.get("n", 1)


def test_an_answer_is_the_same_with_and_without_its_prompt(client: httpx.Client) -> None:
    body = {"prompt": PROMPTS, "max_tokens": 9, "logprobs": 2}
    for plain, echoed in zip(choices(client, body), choices(client, {**body, "echo": True}), strict=True):
        prompt = PROMPTS[plain["index"]]
        assert echoed["text"] == prompt + plain["text"]
        for field in ("tokens", "token_logprobs"):
            assert echoed["logprobs"][field][len(prompt) :] == pytest.approx(
                plain["logprobs"][field], abs=1e-4
            )
        shifted = [len(prompt) + offset for offset in plain["logprobs"]["text_offset"]]
        assert echoed["logprobs"]["text_offset"][len(prompt) :] == shifted


def test_a_prompt_of_token_ids_is_echoed_as_text(client: httpx.Client) -> None:
    by_text = choices(client, {"prompt": PROMPTS[0], "echo": True, "logprobs": 1, "max_tokens": 1})
    token_ids = tokens(client, PROMPTS[0])
    by_ids = choices(client, {"prompt": token_ids, "echo": True, "logprobs": 1, "max_tokens": 1})
    assert by_ids == by_text


def test_a_scored_prompt_of_one_token_and_usage(client: httpx.Client) -> None:
    body = {"prompt": "a", "echo": True, "logprobs": 1, "max_tokens": 0}
    answer = client.post(PATH, json=body).json()
    assert answer["choices"][0]["logprobs"]["tokens"] == ["a"]
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [None]
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["usage"]["prompt_tokens"] == 1


def test_a_loop_ends_where_it_was_asked_to(client: httpx.Client) -> None:
    [token] = tokens(client, "x")
    for path, prompt in (
        (PATH, {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ):
        body = {**prompt, "max_tokens": 400, "temperature": 0, "logit_bias": {str(token): 100}}
        [choice] = client.post(path, json={**body, "stop_on_loop": True}).json()["choices"]
        assert choice["finish_reason"] == "loop"
        text = choice["text"] if path == PATH else choice["message"]["content"]
        assert set(text) == {"x"}
        assert len(text) < 400
        assert client.post(path, json=body).json()["choices"][0]["finish_reason"] == "length"
