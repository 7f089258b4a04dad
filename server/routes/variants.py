"""GET /v1/variants: every variant in full, with what is known of it."""

import time
from typing import Any

from fastapi import APIRouter

from server.judging.agreement import Agreement
from server.judging.evidence import change_object, evidence_object, guard_object
from server.judging.probing import ProbesOff, Probing
from server.judging.shadow import ShadowScorer
from server.variants import VariantRegistry, VariantStatus


def variants_router(
    registry: VariantRegistry, probing: Probing | ProbesOff, shadow: ShadowScorer
) -> APIRouter:
    """The route, over these collaborators."""
    router = APIRouter()

    @router.get("/v1/variants")
    async def list_variants() -> dict[str, Any]:
        return {
            "object": "list",
            "model": registry.model,
            "resident_bytes": registry.resident_bytes,
            "probes": _probes_object(probing),
            "data": [variant_object(status, registry, shadow) for status in registry.offer().statuses],
        }

    return router


def variant_object(status: VariantStatus, registry: VariantRegistry, shadow: ShadowScorer) -> dict[str, Any]:
    """A variant in full. `resident_bytes` is shared by all, `marginal_bytes` held for this one alone."""
    variant = status.variant
    found = shadow.agreement(variant)
    return {
        "id": variant.name,
        "object": "variant",
        "state": status.state.value,
        "default": status.is_default,
        "sparsity": variant.sparsity,
        "exact_sparsity": variant.exact_sparsity,
        "widths": list(variant.widths),
        "delta": variant.delta_digest or None,
        "parameters": variant.parameters,
        "standalone_bytes": variant.standalone_bytes,
        "marginal_bytes": variant.marginal_bytes,
        "resident_bytes": registry.resident_bytes,
        "requests_in_flight": status.in_flight,
        "evidence": None if status.evidence is None else evidence_object(status.evidence, time.time()),
        "changes": [change_object(change) for change in status.changes],
        "agreement": _agreement_object(found) if found.tokens else None,
        "guard": None if status.guard is None else guard_object(status.guard, time.time()),
    }


def _probes_object(probing: Probing | ProbesOff) -> dict[str, Any]:
    """By what variants are judged, or why they are not."""
    if isinstance(probing, ProbesOff):
        return {"task": None, "reason": probing.reason}
    return {
        "task": probing.task.name,
        "budget": probing.budget,
        "tolerance": probing.criterion.tolerance,
        "confidence": probing.criterion.confidence,
        "reference": probing.reference,
        "guard_prompts": len(probing.guard.prompts) if probing.guard else 0,
    }


def _agreement_object(found: Agreement) -> dict[str, Any]:
    """Means over the tokens that were scored since the start."""
    return {
        "answers": found.answers,
        "tokens": found.tokens,
        "top1_agreement": found.agreements / found.tokens,
        "kl_nats": found.kl_nats / found.tokens,
        "worst_kl_nats": found.worst_kl_nats / found.worst_tokens,
    }
