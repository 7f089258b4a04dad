"""What completions and chat share: sending an answer, whole or as a stream, to a client that may leave.

Knows the wire and the connection; what an answer looks like is server/answers.py's.
"""

import asyncio
import json
import logging
import string
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar
from urllib.parse import quote

from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from server.answers import Answer, AnswerFormat
from server.engine.errors import EngineError
from server.engine.stream import TextDelta
from server.errors import RequestError, request_error
from server.generation import Generation, Generations, Origin
from server.middleware import VARIANT_HEADER, VARIANT_REASON_HEADER
from server.policy import Decision

logger = logging.getLogger(__name__)

T = TypeVar("T")


def generation_scope(generations: Generations) -> Callable[[Request], AsyncIterator[Generation]]:
    """A FastAPI dependency: a place in the engine, given back when the response has been sent, or not."""

    async def scope(request: Request) -> AsyncIterator[Generation]:
        generation = generations.open(Origin(request.scope["path"], request.headers))
        try:
            yield generation
        except ClientDisconnect:  # nobody is left to be told of an error
            raise
        except Exception as error:
            generation.error_code = request_error(error).code
            raise
        finally:
            generation.close()

    return scope


async def answer_whole(
    request: Request, generation: Generation, answer: AnswerFormat, decision: Decision
) -> Response:
    """The whole answer as JSON. Raises ClientDisconnect as soon as nobody waits for it any more."""
    choices = await _unless_disconnected(request, generation.collect())

    def content() -> str:
        return answer.whole(choices, generation.usage()).model_dump_json()

    # On a thread, as `answer_stream` does those of prompts: log-probabilities of thousands of tokens take a
    # second to write down, for which all streams would stop.
    is_long = any(choice.logprobs or choice.prompt_logprobs for choice in choices)
    return Response(
        await run_in_threadpool(content) if is_long else content(),
        media_type="application/json",
        headers=_decision_headers(decision),
    )


def answer_stream(
    generation: Generation,
    answer: AnswerFormat,
    decision: Decision,
    *,
    include_usage: bool,
    on_error: Callable[[RequestError], None],
) -> Response:
    """The answer as server-sent events. An error after the first byte is an event, the last one."""
    generation.is_streamed = True

    async def events() -> AsyncIterator[bytes]:
        try:
            async with aclosing(generation.deltas()) as deltas:
                async for index, delta in deltas:
                    if delta.prompt_logprobs:
                        yield await run_in_threadpool(_part, answer, index, delta)
                    elif delta.text or delta.logprobs or delta.finish_reason:
                        yield _part(answer, index, delta)
            if include_usage:
                yield _event(answer.closing(generation.usage()))
        except Exception as error:
            if not isinstance(error, RequestError | EngineError):
                logger.exception("a stream ended by a fault of the server's own: %s", generation.request_id)
            told = request_error(error)
            generation.error_code = told.code
            on_error(told)
            yield format_sse_event(data_str=json.dumps(told.envelope()))
        else:
            yield format_sse_event(data_str="[DONE]")

    # The last header keeps nginx from collecting events.
    headers = {**_decision_headers(decision), "cache-control": "no-cache", "x-accel-buffering": "no"}
    return EventSourceResponse(events(), headers=headers)


def _decision_headers(decision: Decision) -> dict[str, str]:
    name = quote(decision.variant.name, safe=string.punctuation + " ")  # headers hold nothing beyond ASCII
    return {VARIANT_HEADER: name, VARIANT_REASON_HEADER: decision.reason.value}


def _part(answer: AnswerFormat, index: int, delta: TextDelta) -> bytes:
    return _event(answer.part(index, delta))


def _event(answer: Answer) -> bytes:
    return format_sse_event(data_str=answer.model_dump_json())


async def _unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
