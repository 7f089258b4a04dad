"""Servers of every kind, well-behaved or not, over a made-up transport. A real one: tests/integration."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import httpx
import pytest

from eval import endpoint as endpoint_module
from eval.endpoint import Endpoint, ServedSubject, open_endpoint
from eval.generate import Answer, GenerateError
from eval.subject import Strategy

T = TypeVar("T")
CHAT = "/v1/chat/completions"
USAGE = {"prompt_tokens": 5, "completion_tokens": 2}
MODELS = {"data": [{"id": "other"}, {"id": "another"}]}
VARIANT = {
    "id": "m:s20",
    "sparsity": 0.2,
    "exact_sparsity": 0.201,
    "parameters": 10,
    "standalone_bytes": 20,
    "widths": [3, 4],
}


def completion(text: str | None = "42", reason: str = "stop", **more: Any) -> dict[str, Any]:
    choice = {"message": {"content": text}, "finish_reason": reason}
    return {"choices": [choice], "usage": USAGE, **more}


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs something against a server that answers as told; a path that it does not know is a 404."""
    client = httpx.AsyncClient

    def run(answers: Mapping[str, Any], what: Callable[[Endpoint], Awaitable[T]]) -> T:
        def answer(request: httpx.Request) -> httpx.Response:
            found = answers.get(request.url.path, httpx.Response(404))
            if callable(found):
                found = found(request)
            return found if isinstance(found, httpx.Response) else httpx.Response(200, json=found)

        transport = httpx.MockTransport(answer)
        monkeypatch.setattr(endpoint_module.httpx, "AsyncClient", partial(client, transport=transport))

        async def opened() -> T:
            async with open_endpoint("http://there/v1", api_key="k", stop_on_loop=True, connections=2) as it:
                return await what(it)

        return asyncio.run(opened())

    return run


def chat(variant: str) -> Callable[[Endpoint], Awaitable[Answer]]:
    return lambda endpoint: endpoint("why?", variant=variant, max_tokens=9)


@pytest.mark.parametrize("takes_them", [True, False])
def test_a_model_that_thinks_first_is_told_not_to_where_its_template_reads_that(
    ask: Callable[..., Any], takes_them: bool
) -> None:
    sent: list[Any] = []

    def tokenized(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.read())["chat_template_kwargs"])
        return httpx.Response(200 if takes_them else 400, json={"tokens": [1]})

    def answered(request: httpx.Request) -> dict[str, Any]:
        sent.append(json.loads(request.read()).get("chat_template_kwargs"))
        return completion(secateur={"variant": "m:s20"})

    def identity(endpoint: Endpoint) -> dict[str, Any]:
        return ServedSubject(endpoint, "u", Strategy("s", "s", "forward"), (0.2,)).identity(0.2)

    async def both(endpoint: Endpoint) -> dict[str, Any]:
        await chat("m:s20")(endpoint)
        return identity(endpoint)

    answers = {"/v1/variants": {"data": [VARIANT]}, "/v1/models": MODELS, "/tokenize": tokenized}
    told = ask({**answers, CHAT: answered}, both)
    without = {"enable_thinking": False}
    assert sent == [without, without if takes_them else None]
    assert ("enable_thinking" in told) == takes_them


def test_other_servers_are_asked_nothing_that_they_do_not_know(ask: Callable[..., Any]) -> None:
    sent: list[Any] = []

    def answered(request: httpx.Request) -> dict[str, Any]:
        sent.append((request.headers["authorization"], httpx.Response(200, content=request.read()).json()))
        return completion(None, reason="eos")

    async def first(endpoint: Endpoint) -> Answer:
        facts = endpoint.variant_at(0.0)
        with pytest.raises(GenerateError, match="is no Secateur server and lists the models other, another"):
            endpoint.variant_at(0.2)
        return await endpoint("why?", variant=facts.name, max_tokens=9)

    answer = ask({"/v1/models": MODELS, CHAT: answered}, first)
    assert answer == Answer("", "stop", 5, 2)
    message = {"role": "user", "content": "why?"}
    body = {"model": "other", "messages": [message], "temperature": 0, "max_tokens": 9}
    assert sent == [("Bearer k", body)]


def test_a_fallback_is_no_answer(ask: Callable[..., Any]) -> None:
    """Else the denser size would be graded in the name of the one that was asked."""
    served = {"/v1/variants": {"data": [VARIANT]}, "/v1/models": MODELS}
    denser = completion(secateur={"variant": "m:s0"})
    with pytest.raises(GenerateError, match="m:s20 was asked for and m:s0 answered: set on_degraded"):
        ask({**served, CHAT: denser}, chat("m:s20"))
    right = completion(secateur={"variant": "m:s20"}, reason="loop")
    assert ask({**served, CHAT: right}, chat("m:s20")) == Answer("42", "loop", 5, 2)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (httpx.Response(200, text="<html>"), "something other than JSON"),
        (httpx.Response(200, json=[1]), "answered list in place of an object"),
        ({"choices": []}, "no chat completion"),
        ({"choices": [{"finish_reason": "stop", "message": None}], "usage": USAGE}, "no chat completion"),
        ({**completion(), "usage": {}}, "no chat completion"),
        (httpx.Response(500, text="boom"), "answered 500: boom"),
        (httpx.Response(409, json={"error": {"message": "degraded"}}), "answered 409: degraded"),
    ],
)
def test_what_is_no_answer_is_told(ask: Callable[..., Any], answer: Any, told: str) -> None:
    with pytest.raises(GenerateError, match=told):
        ask({"/v1/models": MODELS, CHAT: answer}, chat("other"))


def test_a_busy_server_is_waited_for_and_not_for_ever(
    ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(endpoint_module.asyncio, "sleep", sleep)
    busy = [httpx.Response(429, headers={"retry-after": "7"}), httpx.Response(503), httpx.Response(503)]
    answers = {"/v1/models": MODELS, CHAT: lambda request: busy.pop(0) if busy else completion()}
    assert ask(answers, chat("other")).text == "42"
    assert pauses == [7.0, 2.0, 4.0]
    monkeypatch.setattr(endpoint_module, "PATIENCE_SECONDS", 5.0)
    told = httpx.Response(429, headers={"retry-after": "7"}, json={"error": {"message": "full"}})
    with pytest.raises(GenerateError, match="has been busy for 5 seconds: full"):
        ask({"/v1/models": MODELS, CHAT: told}, chat("other"))
