"""/health, /ready, /version and /metrics: for whoever runs the server. Open to all, without a key."""

from http import HTTPStatus
from typing import Any

import torch
import transformers
from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from server import __version__
from server.engine.async_engine import AsyncEngine
from server.generation import Generations
from server.monitoring.metrics import Metrics


def operations_router(engine: AsyncEngine, generations: Generations, metrics: Metrics) -> APIRouter:
    """The routes, over these collaborators."""
    router = APIRouter()

    def trouble() -> str | None:
        if engine.is_alive:
            return None
        return f"the engine has died: {engine.death!r}" if engine.death else "the engine does not run"

    def unready() -> str | None:
        if generations.is_draining:
            return "shutting down"
        if engine.is_stuck:
            return f"a step of the engine has been running for {engine.step_age_seconds:,.0f} seconds"
        return None

    @router.get("/health")
    async def health() -> Response:
        """Whether the process should be left running."""
        return _report(trouble())

    @router.get("/ready")
    async def ready() -> Response:
        """Whether requests should be sent here."""
        return _report(trouble() or unready())

    @router.get("/version")
    async def version() -> dict[str, Any]:
        return {
            "version": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "kernels": engine.kernels,
            "precision": engine.precision,
        }

    @router.get("/metrics")
    async def scrape() -> Response:
        exposition = metrics.exposition
        return Response(exposition.page(), headers={"content-type": exposition.content_type})

    return router


def _report(trouble: str | None) -> Response:
    if trouble is None:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "unavailable", "reason": trouble}, HTTPStatus.SERVICE_UNAVAILABLE)
