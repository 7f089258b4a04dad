"""/admin: variants come and go while the process serves, and probes are run when asked for."""

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import APIRouter, BackgroundTasks

from server.errors import ProbeConflictError
from server.judging.evidence import evidence_object
from server.judging.probing import ProbeRun, ProbesOff, Probing
from server.judging.shadow import ShadowScorer
from server.loading.deltas import read_delta
from server.protocol import AddVariantRequest, RunProbesRequest
from server.routes.variants import variant_object
from server.variants import VariantRegistry


def admin_router(
    registry: VariantRegistry,
    task: str,
    on_added: Callable[[str], None],
    probing: Probing | ProbesOff,
    shadow: ShadowScorer,
) -> APIRouter:
    """The routes, over these collaborators.

    Args:
        task: that variants are judged by.
        on_added: told the name of each new variant.
    """
    router = APIRouter()

    def prober() -> Probing:
        if isinstance(probing, ProbesOff):
            raise ProbeConflictError(f"variants are not judged here: {probing.reason}")
        return probing

    @router.post("/admin/variants", status_code=HTTPStatus.CREATED)
    async def add_variant(body: AddVariantRequest, background: BackgroundTasks) -> dict[str, Any]:
        named = None if body.delta is None else await asyncio.to_thread(read_delta, Path(body.delta), task)
        status = registry.add(await asyncio.to_thread(registry.build, body.sparsity, named))
        on_added(status.variant.name)
        if isinstance(probing, Probing):
            background.add_task(probing.refresh)  # it may have been judged before
        return variant_object(status, registry, shadow)

    @router.delete("/admin/variants/{name}", status_code=HTTPStatus.ACCEPTED)
    async def retire_variant(name: str, background: BackgroundTasks) -> dict[str, Any]:
        status = registry.retire(name)
        if isinstance(probing, Probing):
            background.add_task(probing.refresh)  # the others may be held to another one from now on
        return variant_object(status, registry, shadow)

    @router.post("/admin/probes/run", status_code=HTTPStatus.ACCEPTED)
    async def run_probes(body: RunProbesRequest) -> dict[str, Any]:
        return _run_object(prober().run_now(body.variants, body.items))

    @router.get("/admin/probes/run")
    async def latest_run() -> dict[str, Any]:
        run = prober().latest_run
        if run is None:
            raise ProbeConflictError("no probes were asked for yet: POST begins a run")
        return _run_object(run)

    return router


def _run_object(run: ProbeRun) -> dict[str, Any]:
    """How far a run has come; when it is done, what is known of its variants by then."""
    now = time.time()
    return {
        "object": "probe_run",
        "state": run.state,
        "variants": list(run.variants),
        "items": run.items,
        "items_done": run.items_done,
        "error": run.error,
        "evidence": {name: evidence_object(evidence, now) for name, evidence in run.evidence.items()},
    }
