"""POST and DELETE /admin/variants: variants come and go while the process serves."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter

from server.protocol import AddVariantRequest
from server.routes.models import variant_object
from server.variants import VariantRegistry


def admin_router(registry: VariantRegistry, on_added: Callable[[str], None]) -> APIRouter:
    """The routes, over these collaborators. `on_added` is told the name of each new variant."""
    router = APIRouter()

    @router.post("/admin/variants", status_code=HTTPStatus.CREATED)
    async def add_variant(body: AddVariantRequest) -> dict[str, Any]:
        status = registry.add(body.sparsity)
        on_added(status.variant.name)
        return variant_object(status, registry)

    @router.delete("/admin/variants/{name}", status_code=HTTPStatus.ACCEPTED)
    async def retire_variant(name: str) -> dict[str, Any]:
        return variant_object(registry.retire(name), registry)

    return router
