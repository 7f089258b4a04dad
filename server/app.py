"""Puts the HTTP surface together: routes, middleware, error envelopes, the engine's start and stop.

Builds; the collaborators come in ready-made from server/service.py or from a test.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from pruning.errors import SecateurError
from server import __version__
from server.engine.async_engine import AsyncEngine
from server.errors import InternalError, RequestError, request_error
from server.generation import Generations
from server.judging.probing import ProbesOff, Probing
from server.judging.shadow import ShadowScorer
from server.middleware import (
    REQUEST_ID_HEADER,
    AdminMiddleware,
    ApiKeyMiddleware,
    BodyLimitMiddleware,
    ErrorMiddleware,
    RequestIdMiddleware,
)
from server.monitoring.live_source import LiveSource
from server.monitoring.metrics import Metrics
from server.routes.admin import admin_router
from server.routes.chat import chat_router
from server.routes.completions import completions_router
from server.routes.console import console_router
from server.routes.live import live_router
from server.routes.models import models_router
from server.routes.operations import operations_router
from server.routes.tokenize import tokenize_router
from server.routes.variants import variants_router
from server.settings import HttpSettings
from server.tokenization import PromptTokenizer
from server.variants import VariantRegistry

if TYPE_CHECKING:  # what it imports need not be installed
    from server.monitoring.tracing import Tracing

logger = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499  # nginx's; nobody receives it, but the log shows it


def build_app(
    *,
    settings: HttpSettings,
    engine: AsyncEngine,
    generations: Generations,
    registry: VariantRegistry,
    tokenizer: PromptTokenizer,
    metrics: Metrics,
    probing: Probing | ProbesOff,
    shadow: ShadowScorer,
    live: LiveSource,
    task: str,
    max_model_len: int,
    tracing: "Tracing | None",
) -> FastAPI:
    """The ASGI application. Its lifespan starts and stops the engine, and what runs on it by itself.

    Args:
        task: that variants are to be judged by, whether or not they can be.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        own_tasks = [asyncio.create_task(work) for work in (shadow.run(), live.history.run())]
        for task in own_tasks:
            task.add_done_callback(_report_fault)
        if isinstance(probing, Probing):
            probing.start()
        try:
            yield
        finally:
            for task in own_tasks:
                task.cancel()
            await asyncio.gather(*own_tasks, return_exceptions=True)
            if isinstance(probing, Probing):
                await probing.stop()
            await engine.stop()
            if tracing is not None:
                await asyncio.to_thread(tracing.shutdown)

    def count(error: RequestError) -> None:
        metrics.rejected(error.code)

    app = FastAPI(
        title="Secateur",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # these pages load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(completions_router(generations, tokenizer, count))
    app.include_router(chat_router(generations, tokenizer, max_model_len, count))
    app.include_router(models_router(registry, int(time.time()), max_model_len))
    app.include_router(variants_router(registry, probing, shadow))
    app.include_router(live_router(live))
    app.include_router(tokenize_router(tokenizer, max_model_len))
    app.include_router(admin_router(registry, task, metrics.declare, probing, shadow))
    app.include_router(operations_router(engine, generations, metrics))
    if settings.console:
        app.include_router(console_router())
    for status in registry.offer().statuses:
        metrics.declare(status.variant.name)

    def respond(error: RequestError) -> Response:
        count(error)
        return JSONResponse(error.envelope(), error.status, headers=error.headers)

    async def handle(request: Request, error: Exception) -> Response:
        told = request_error(error)
        if isinstance(told, InternalError):  # what it was, with a traceback, uvicorn logs next
            logger.error("a fault of the server's own: %r, id=%s", error, request.state.request_id)
        response = respond(told)
        response.headers[REQUEST_ID_HEADER] = request.state.request_id
        return response

    async def handle_disconnect(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    for kind in (SecateurError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, handle)
    app.add_exception_handler(ClientDisconnect, handle_disconnect)

    # The one added last is the outermost.
    app.add_middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes)
    admin_key = None if settings.admin_key is None else settings.admin_key.get_secret_value()
    app.add_middleware(AdminMiddleware, key=admin_key)
    app.add_middleware(ApiKeyMiddleware, keys=[key.get_secret_value() for key in settings.api_keys])
    app.add_middleware(ErrorMiddleware, respond=respond)
    app.add_middleware(RequestIdMiddleware)
    return app


def _report_fault(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("what the server does by itself has ended by a fault of its own", exc_info=error)
