"""A model behind an OpenAI-style URL: a `Generate`, and the `Subject` of a study.

A Secateur server is asked for its variants and says what it applied; any other server has the models that it
lists. Sends one chat request an answer, and waits where the server says that it is busy.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import httpx

from eval.generate import Answer, AnswerEnd, Generate, GenerateError
from eval.subject import Strategy, VariantFacts
from pruning.chat_prompts import MEASUREMENT_VARIABLES

PATIENCE_SECONDS = 600.0  # that a busy server may go on saying so
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 30.0
TIMEOUT = httpx.Timeout(600.0, connect=10.0)
BUSY = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)
VARIABLES_FIELD = "chat_template_kwargs"
ENDS = ("stop", "length", "loop")


@dataclass(frozen=True)
class ServedVariant:
    """One that a Secateur server lists. `widths` tell it from another of the same name."""

    facts: VariantFacts
    widths: tuple[int, ...]


class Endpoint:
    """A `Generate` over HTTP. Made by `open_endpoint`.

    Attributes:
        variants: sparsity -> what a Secateur server serves; empty for any other server.
        models: names of the models that any server lists.
        template_variables: that the server's chat template reads and every request sets.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        variants: Mapping[float, ServedVariant],
        models: Sequence[str],
        *,
        stop_on_loop: bool,
        template_variables: Mapping[str, Any],
    ) -> None:
        self._http = http
        self.variants = variants
        self.models = models
        self.template_variables = template_variables
        # What only Secateur understands; others may refuse it.
        self._extensions: dict[str, Any] = (
            {"allow_unsafe": True, "stop_on_loop": stop_on_loop} if variants else {}
        )
        if template_variables:
            self._extensions[VARIABLES_FIELD] = dict(template_variables)

    def variant_at(self, sparsity: float) -> VariantFacts:
        """What the server has at `sparsity`. Raises GenerateError that says what there is."""
        if sparsity in self.variants:
            return self.variants[sparsity].facts
        if self.variants:
            served = ", ".join(f"{each:g}" for each in sorted(self.variants))
            raise GenerateError(
                f"{self._http.base_url} does not serve sparsity {sparsity:g}, only {served}: add it there "
                "(POST /admin/variants) or ask for one of these"
            )
        if sparsity == 0 and self.models:
            return VariantFacts(self.models[0], 0.0, None, None)
        raise GenerateError(
            f"{self._http.base_url} is no Secateur server and lists the models {', '.join(self.models)}: "
            "it can be evaluated at sparsity 0 alone, with the first of them"
        )

    async def __call__(self, prompt: str, *, variant: str, max_tokens: int) -> Answer:
        body = {
            "model": variant,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": max_tokens,
            **self._extensions,
        }
        return _answer(await self._post("/v1/chat/completions", body), variant)

    async def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        deadline, wait = time.monotonic() + PATIENCE_SECONDS, FIRST_WAIT_SECONDS
        while True:
            try:
                response = await self._http.post(path, json=body)
            except httpx.HTTPError as error:
                raise _unreachable(self._http, error) from error
            if response.status_code not in BUSY:
                return _json(response)
            pause = _retry_after(response, wait)
            if time.monotonic() + pause > deadline:
                raise GenerateError(
                    f"{self._http.base_url} has been busy for {PATIENCE_SECONDS:g} seconds: {_told(response)}"
                )
            await asyncio.sleep(pause)
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)


@asynccontextmanager
async def open_endpoint(
    url: str, *, api_key: str | None, stop_on_loop: bool, connections: int
) -> AsyncIterator[Endpoint]:
    """Asks the server at `url` what it has.

    Args:
        url: with or without the /v1 that OpenAI's clients want at its end.
        connections: answers under way at once.

    Raises:
        GenerateError: there is no such server there.
    """
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    async with httpx.AsyncClient(
        base_url=url.rstrip("/").removesuffix("/v1"),
        headers=headers,
        timeout=TIMEOUT,
        limits=httpx.Limits(max_connections=connections),
    ) as http:
        try:
            listed = await http.get("/v1/variants")
            models = await http.get("/v1/models")
            variants = {} if listed.status_code == httpx.codes.NOT_FOUND else _variants(_json(listed))
            variables = MEASUREMENT_VARIABLES if variants and await _takes_variables(http) else {}
        except httpx.HTTPError as error:
            raise _unreachable(http, error) from error
        names = [str(model["id"]) for model in _json(models)["data"]]
        yield Endpoint(http, variants, names, stop_on_loop=stop_on_loop, template_variables=variables)


async def _takes_variables(http: httpx.AsyncClient) -> bool:
    """Whether a Secateur's chat template reads what is set where something is measured: others it refuses."""
    body = {"messages": [{"role": "user", "content": "?"}], VARIABLES_FIELD: dict(MEASUREMENT_VARIABLES)}
    return (await http.post("/tokenize", json=body)).status_code == httpx.codes.OK


@dataclass(frozen=True)
class ServedSubject:
    """What a Secateur server serves, as it serves it; an `eval.subject.Subject` and a `StudiedModel`.

    A server does not tell its model's digest: a study goes on only against the server that it began with.
    """

    endpoint: Endpoint
    url: str
    strategy: Strategy
    sparsities: tuple[float, ...]

    @property
    def generate(self) -> Generate:
        return self.endpoint

    def facts(self, sparsity: float) -> VariantFacts:
        return self.endpoint.variants[sparsity].facts

    def identity(self, sparsity: float) -> dict[str, Any]:
        served = self.endpoint.variants[sparsity]
        return {
            "url": self.url,
            "variant": served.facts.name,
            "widths": list(served.widths),
            **self.endpoint.template_variables,
        }

    async def tokens_per_second(self, sparsity: float, prompts: Sequence[str], max_tokens: int) -> None:
        """A server may be serving others meanwhile, so its speed would say little."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator["ServedSubject"]:
        yield self


def _answer(body: dict[str, Any], variant: str) -> Answer:
    applied = body.get("secateur", {}).get("variant", variant)
    if applied != variant:
        raise GenerateError(f"{variant} was asked for and {applied} answered: set on_degraded to refuse")
    try:
        choice, usage = body["choices"][0], body["usage"]
        reason = choice["finish_reason"]
        return Answer(
            text=choice["message"]["content"] or "",
            finish_reason=cast("AnswerEnd", reason if reason in ENDS else "stop"),
            prompt_tokens=int(usage["prompt_tokens"]),
            completion_tokens=int(usage["completion_tokens"]),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise GenerateError(f"{variant} gave an answer that is no chat completion ({error!r})") from error


def _variants(body: dict[str, Any]) -> dict[float, ServedVariant]:
    return {
        float(variant["sparsity"]): ServedVariant(
            VariantFacts(
                name=variant["id"],
                exact_sparsity=variant["exact_sparsity"],
                parameters=variant["parameters"],
                weight_bytes=variant["standalone_bytes"],
            ),
            tuple(variant["widths"]),
        )
        for variant in body["data"]
    }


def _json(response: httpx.Response) -> dict[str, Any]:
    if response.status_code != httpx.codes.OK:
        raise GenerateError(f"{response.url} answered {response.status_code}: {_told(response)}")
    try:
        body = response.json()
    except ValueError as error:
        raise GenerateError(f"{response.url} answered something other than JSON") from error
    if not isinstance(body, dict):
        raise GenerateError(f"{response.url} answered {type(body).__name__} in place of an object")
    return body


def _told(response: httpx.Response) -> str:
    """The message of an OpenAI error envelope, else the beginning of the body."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:500]


def _retry_after(response: httpx.Response, otherwise: float) -> float:
    told = response.headers.get("retry-after", "")
    return float(told) if told.isdigit() else otherwise


def _unreachable(http: httpx.AsyncClient, error: httpx.HTTPError) -> GenerateError:
    return GenerateError(f"{http.base_url} does not answer ({error!r}): is the server running there?")
