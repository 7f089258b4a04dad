"""GET /v1/models: what there is to choose from, for OpenAI's clients."""

from typing import Any

from fastapi import APIRouter

from server.errors import ModelNotFoundError
from server.variants import VariantRegistry


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

    return router
