"""GET /v1/live: the server at a glance, now and over the last quarter of an hour."""

from typing import Annotated

from fastapi import APIRouter, Query

from server.monitoring.live_schema import LiveState
from server.monitoring.live_source import LiveSource


def live_router(source: LiveSource) -> APIRouter:
    """The route, over this collaborator."""
    router = APIRouter()

    @router.get("/v1/live")
    async def live(since: Annotated[float | None, Query(allow_inf_nan=False)] = None) -> LiveState:
        return source.state(since)

    return router
