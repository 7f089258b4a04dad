"""GET /v1/models and /v1/variants: what there is to choose from, for OpenAI's clients and in full."""

from typing import Any

from fastapi import APIRouter

from server.errors import ModelNotFoundError
from server.variants import VariantRegistry, VariantStatus


def models_router(registry: VariantRegistry, created: int, max_model_len: int) -> APIRouter:
    """The routes, over these collaborators. `created` is the time that the models are said to be from."""
    router = APIRouter()

    def model_object(name: str, parent: str | None) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "secateur",
            "parent": parent,
            "max_model_len": max_model_len,
        }

    def models() -> list[dict[str, Any]]:
        names = [status.variant.name for status in registry.offer().statuses]
        return [model_object(registry.model, None), *(model_object(name, registry.model) for name in names)]

    @router.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": models()}

    @router.get("/v1/models/{name:path}")
    async def get_model(name: str) -> dict[str, Any]:
        for model in models():
            if model["id"] == name:
                return model
        known = ", ".join(model["id"] for model in models())
        raise ModelNotFoundError(f"there is no model {name!r} here; there are {known}", param="model")

    @router.get("/v1/variants")
    async def list_variants() -> dict[str, Any]:
        return {
            "object": "list",
            "model": registry.model,
            "resident_bytes": registry.resident_bytes,
            "data": [variant_object(status, registry) for status in registry.offer().statuses],
        }

    return router


def variant_object(status: VariantStatus, registry: VariantRegistry) -> dict[str, Any]:
    """A variant in full. `resident_bytes` is shared by all, `marginal_bytes` held for this one alone."""
    variant = status.variant
    return {
        "id": variant.name,
        "object": "variant",
        "state": status.state.value,
        "default": status.is_default,
        "sparsity": variant.sparsity,
        "exact_sparsity": variant.exact_sparsity,
        "widths": list(variant.widths),
        "parameters": variant.parameters,
        "standalone_bytes": variant.standalone_bytes,
        "marginal_bytes": variant.marginal_bytes,
        "resident_bytes": registry.resident_bytes,
        "requests_in_flight": status.in_flight,
    }
