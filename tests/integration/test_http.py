"""Routes and refusals over a real connection: whatever goes wrong is an OpenAI envelope."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from pruning.checkpoints.checkpoint import open_checkpoint
from server import __version__
from tests.integration.live import MAX_MODEL_LEN, Live, Tiny, make_tiny, running

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}


def refusal(response: httpx.Response) -> tuple[int, str, str | None]:
    """(status, code, param) of an answer that must be an envelope."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert response.headers["x-request-id"]
    return response.status_code, error["code"], error["param"]


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (COMPLETIONS, {"prompt": "a", "temperature": 3}, (422, "schema_violation", "temperature")),
        (COMPLETIONS, {}, (422, "schema_violation", "prompt")),
        (COMPLETIONS, {"prompt": "a", "suffix": "b"}, (400, "unsupported_field", "suffix")),
        (COMPLETIONS, {"prompt": "a", "max_accuracy_drop": 0.1}, (400, "invalid_value", "max_accuracy_drop")),
        (COMPLETIONS, {"prompt": "a", "sparsity": 0.15}, (400, "sparsity_not_served", "sparsity")),
        (COMPLETIONS, {"prompt": "a", "sparsity": 0.35}, (400, "unsafe_sparsity", "sparsity")),
        (COMPLETIONS, {"prompt": "a", "model": "tiny:s35"}, (400, "unsafe_sparsity", "model")),
        (COMPLETIONS, {"prompt": "a", "model": "gpt-4"}, (404, "model_not_found", "model")),
        (
            COMPLETIONS,
            {"prompt": "a", "model": "tiny:s10", "sparsity": 0.2},
            (400, "invalid_value", "sparsity"),
        ),
        (COMPLETIONS, {"prompt": ""}, (400, "invalid_value", "prompt")),
        (COMPLETIONS, {"prompt": [[1], []]}, (400, "invalid_value", "prompt")),
        (COMPLETIONS, {"prompt": [320]}, (400, "invalid_value", "prompt")),
        (COMPLETIONS, {"prompt": "a", "logit_bias": {"320": 1}}, (400, "invalid_value", "logit_bias")),
        (COMPLETIONS, {"prompt": ["a"] * 17}, (400, "invalid_value", None)),
        (
            COMPLETIONS,
            {"prompt": ["a"] * 8, "logprobs": 20, "max_tokens": 16_000},
            (400, "invalid_value", None),
        ),
        (
            COMPLETIONS,
            {"prompt": ["a" * 12_000] * 8, "logprobs": 20, "max_tokens": 0, "echo": True},
            (400, "invalid_value", None),
        ),
        (
            COMPLETIONS,
            {"prompt": "a", "max_tokens": MAX_MODEL_LEN},
            (400, "context_length_exceeded", "max_tokens"),
        ),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "a" * MAX_MODEL_LEN}]},
            (400, "context_length_exceeded", "messages"),
        ),
        (CHAT, {**HI, "logit_bias": {"320": 1}}, (400, "invalid_value", "logit_bias")),
        (
            CHAT,
            {
                **HI,
                "chat_template_kwargs": {"enable_thinking": False},
            },  # which this template knows nothing of
            (400, "invalid_value", "chat_template_kwargs"),
        ),
        (
            CHAT,
            {**HI, "chat_template_kwargs": {"a": [1]}},
            (422, "schema_violation", "chat_template_kwargs.a"),
        ),
        (CHAT, {**HI, "tools": [{}]}, (400, "unsupported_field", "tools")),
        (CHAT, {"messages": []}, (422, "schema_violation", "messages")),
        (CHAT, {"messages": [{"role": "bot", "content": "a"}]}, (422, "schema_violation", "messages.0.role")),
        ("/tokenize", {"prompt": "a", **HI}, (422, "schema_violation", None)),
        ("/admin/variants", {"sparsity": 0.1}, (409, "variant_conflict", None)),
        ("/admin/variants", {"sparsity": 0.3, "name": "x"}, (422, "schema_violation", "name")),
    ],
)
def test_refusals(
    client: httpx.Client, live: Live, path: str, body: dict[str, Any], expected: tuple[int, str, str | None]
) -> None:
    assert refusal(client.post(path, json=body)) == expected
    assert live.generations.num_open == 0
    assert live.engine.num_unfinished == 0


@pytest.mark.parametrize(
    ("content", "content_type", "expected"),
    [
        (b"{", "application/json", (400, "invalid_json", None)),
        (b"[" * 50_000, "application/json", (400, "invalid_json", None)),
        (b"\xff\xfe\xfd", "application/json", (400, "invalid_json", None)),
        (b'{"prompt": "a"}', "text/plain", (422, "schema_violation", None)),
        (b'{"prompt": "a", "top_p": NaN}', "application/json", (422, "schema_violation", "top_p")),
        (b'{"prompt": "\\ud800"}', "application/json", (422, "schema_violation", "prompt")),
        (b"[]", "application/json", (422, "schema_violation", None)),
        (b" " * 100_001, "application/json", (413, "body_too_large", None)),
    ],
)
def test_bodies_that_are_no_request(
    client: httpx.Client, content: bytes, content_type: str, expected: tuple[int, str, str | None]
) -> None:
    headers = {"content-type": content_type}
    assert refusal(client.post(COMPLETIONS, content=content, headers=headers)) == expected


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(client: httpx.Client) -> None:
    parts = (b" " * 10_000 for _ in range(11))
    response = client.post(COMPLETIONS, content=parts, headers={"content-type": "application/json"})
    assert refusal(response) == (413, "body_too_large", None)


def test_a_name_that_no_header_can_hold_is_escaped_there(tmp_path: Path) -> None:
    made = make_tiny(tmp_path)
    renamed = made.checkpoint.path.rename(tmp_path / "\u6a21\u578b%\n1")
    tiny = replace(made, checkpoint=open_checkpoint(str(renamed), tmp_path))
    with running(tiny) as live, live.client() as client:
        body = {"prompt": "a", "max_tokens": 1}
        for asked in (body, {**body, "stream": True}):
            response = client.post(COMPLETIONS, json=asked)
            assert response.status_code == 200
            assert response.headers["x-secateur-variant"] == "%E6%A8%A1%E5%9E%8B%%0A1:s0"
        assert client.post(COMPLETIONS, json=body).json()["model"] == "\u6a21\u578b%\n1:s0"


def test_unknown_routes_and_methods_are_envelopes(client: httpx.Client) -> None:
    assert refusal(client.get("/v2/models")) == (404, "unknown_url", None)
    assert refusal(client.get("/v1/models/")) == (404, "model_not_found", "model")
    response = client.get(COMPLETIONS)
    assert refusal(response) == (405, "method_not_allowed", None)
    assert response.headers["allow"] == "POST"
    assert refusal(client.get("/v1/models/tiny:s99")) == (404, "model_not_found", "model")
    assert refusal(client.delete("/admin/variants/tiny:s99")) == (404, "model_not_found", None)


def test_request_ids_are_echoed_if_sane_and_made_if_not(client: httpx.Client) -> None:
    for offered, kept in (("abc-1.2:3_X", True), ("a" * 129, False), ("a b", False), ("", False)):
        answered = client.get("/health", headers={"x-request-id": offered}).headers["x-request-id"]
        assert (answered == offered) is kept
        assert answered
    # ... and may be used twice at once: the engine has ids of its own.
    body = {"prompt": "a", "n": 2, "max_tokens": 2}
    for _ in range(2):
        assert client.post(COMPLETIONS, json=body, headers={"x-request-id": "same"}).status_code == 200


def test_what_there_is(client: httpx.Client, live: Live) -> None:
    assert client.get("/health").json() == client.get("/ready").json() == {"status": "ok"}
    version = client.get("/version").json()
    assert version["version"] == __version__
    assert version["kernels"] == live.engine.kernels
    assert version["precision"] == "float32"
    assert "/v1/chat/completions" in client.get("/openapi.json").json()["paths"]
    models = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["tiny", "tiny:s0", "tiny:s10", "tiny:s20", "tiny:s35"]
    assert client.get("/v1/models/tiny:s10").json() == models[2]
    variants = client.get("/v1/variants").json()
    for variant in variants["data"]:
        assert variant["resident_bytes"] == live.engine.weight_bytes == variants["resident_bytes"]
        assert variant["marginal_bytes"] == 0
        kept = sum(variant["widths"])
        assert variant["exact_sparsity"] == pytest.approx(1 - kept / (3 * 192))
        dense = variants["data"][0]
        removed = 3 * 64 * (3 * 192 - kept)
        assert variant["parameters"] == dense["parameters"] - removed
        assert variant["standalone_bytes"] == dense["standalone_bytes"] - 4 * removed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_eight_bits_are_served_at_every_size(tiny: Tiny, dtype: str) -> None:
    with running(tiny, dtype=dtype, quantization="int8") as live, live.client() as client:
        assert client.get("/version").json()["precision"] == f"{dtype} int8"
        assert f'precision="{dtype} int8"' in client.get("/metrics").text
        for sparsity in (0.0, 0.1, 0.2):
            answer = client.post(CHAT, json={**HI, "sparsity": sparsity, "max_tokens": 4})
            assert answer.status_code == 200
            assert answer.json()["usage"]["completion_tokens"] > 0
        dense, *_, sparse = client.get("/v1/variants").json()["data"]
        removed = 3 * 192 - sum(sparse["widths"])
        # Of a neuron three rows of bytes go, and the scales of two of them.
        assert dense["standalone_bytes"] - sparse["standalone_bytes"] == removed * (3 * 64 + 2 * 4)


def test_tokenize_sees_what_generation_sees(client: httpx.Client) -> None:
    tokens = client.post("/tokenize", json={"prompt": "héllo"}).json()
    assert (tokens["count"], tokens["max_model_len"]) == (6, MAX_MODEL_LEN)
    chat = client.post("/tokenize", json=HI).json()
    answer = client.post(CHAT, json={**HI, "max_tokens": 1}).json()
    assert answer["usage"]["prompt_tokens"] == chat["count"]
    by_ids = client.post(COMPLETIONS, json={"prompt": tokens["tokens"], "temperature": 0}).json()
    by_text = client.post(COMPLETIONS, json={"prompt": "héllo", "temperature": 0}).json()
    assert by_ids["choices"] == by_text["choices"]


def test_keys_guard_a_real_server(tiny: Tiny) -> None:
    with running(tiny, api_keys=("sesame",), admin_key="root") as live, live.client() as client:
        assert refusal(client.get("/v1/models")) == (401, "invalid_api_key", None)
        assert client.get("/v1/models").headers["www-authenticate"] == "Bearer"
        assert refusal(client.get("/v1/nowhere")) == (401, "invalid_api_key", None)
        assert refusal(client.post("/tokenize", json={"prompt": "a"})) == (401, "invalid_api_key", None)
        sesame = {"authorization": "Bearer sesame"}
        assert client.get("/v1/models", headers=sesame).status_code == 200
        assert client.get("/health").status_code == client.get("/metrics").status_code == 200
        body = {"sparsity": 0.3}
        for headers in ({}, sesame):
            response = client.post("/admin/variants", json=body, headers=headers)
            assert refusal(response) == (401, "invalid_api_key", None)
        root = {"authorization": "Bearer root"}
        assert client.post("/admin/variants", json=body, headers=root).status_code == 201


def test_admin_without_a_key_is_closed_to_a_name_that_means_this_machine(client: httpx.Client) -> None:
    rebound = {"host": "site.example:8000"}
    response = client.get("/admin/probes/run", headers=rebound)
    assert refusal(response) == (403, "permission_denied", None)
    assert "site.example:8000" in response.json()["error"]["message"]
    assert client.get("/v1/models", headers=rebound).status_code == 200
    assert client.get("/admin/probes/run").status_code == 409  # nothing is judged here


def test_a_fault_of_our_own_is_an_envelope_without_details(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tiny) as live, live.client() as client:
        monkeypatch.setattr(live.generations.registry, "offer", lambda: 1 / 0)
        response = client.get("/v1/models", headers={"x-request-id": "mine"})
        monkeypatch.undo()
    assert refusal(response) == (500, "internal_error", None)
    assert response.headers["x-request-id"] == "mine"
    assert "division" not in response.text
