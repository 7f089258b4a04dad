"""Which variant a request gets. Pure: an ask and an offer in, a variant or a refusal out."""

import math
from dataclasses import dataclass

from server.engine.variant import Variant
from server.errors import (
    InvalidValueError,
    ModelNotFoundError,
    SparsityNotServedError,
    UnsafeSparsityError,
    VariantConflictError,
)
from server.variants import Offer, VariantState, VariantStatus


@dataclass(frozen=True)
class Ask:
    """What a request says about its variant. None is "whatever is the default"."""

    model: str | None = None
    sparsity: float | None = None
    allow_unsafe: bool = False


@dataclass(frozen=True)
class VariantPolicy:
    """Gives a request exactly the variant it asks for, or an error; never a near one.

    Attributes:
        safe_sparsity: beyond it a variant is served only where allowed.
        allow_unsafe: whether the operator allows it for everyone.
    """

    safe_sparsity: float
    allow_unsafe: bool

    def resolve(self, ask: Ask, offer: Offer) -> Variant:
        """The variant for `ask`.

        Raises:
            ModelNotFoundError: the model's name is unknown.
            SparsityNotServedError: no variant has the sparsity.
            InvalidValueError: name and sparsity mean different variants.
            UnsafeSparsityError: it lies beyond the safe margin and nobody allowed that.
            VariantConflictError: it is disabled or about to go.
        """
        status = self._find(ask, offer)
        variant = status.variant
        if variant.sparsity > self.safe_sparsity and not (self.allow_unsafe or ask.allow_unsafe):
            raise UnsafeSparsityError(
                f"{variant.name} removes {variant.sparsity:g}; up to {self.safe_sparsity:g} is safe "
                '(safe_sparsity): say "allow_unsafe": true to have it all the same',
                param="sparsity" if ask.sparsity is not None else "model",
            )
        if status.state is VariantState.RETIRING:
            raise VariantConflictError(
                f"{variant.name} is being retired and takes no new requests; {_served(offer)}"
            )
        if status.state is VariantState.DISABLED and not ask.allow_unsafe:
            raise VariantConflictError(
                f'{variant.name} is disabled, its answers are not good enough: say "allow_unsafe": true to '
                f"have it all the same; {_served(offer)}"
            )
        return variant

    def _find(self, ask: Ask, offer: Offer) -> VariantStatus:
        by_name = _by_name(ask.model, offer)
        if ask.sparsity is None:
            return by_name or next(status for status in offer.statuses if status.is_default)
        by_sparsity = _by_sparsity(ask.sparsity, offer)
        if by_name is not None and by_name != by_sparsity:
            raise InvalidValueError(
                f"model {by_name.variant.name} and sparsity {ask.sparsity:g} mean different variants: "
                "give one of them",
                param="sparsity",
            )
        return by_sparsity


def _by_name(model: str | None, offer: Offer) -> VariantStatus | None:
    """None where the model's own name is given, or none at all."""
    if model is None or model == offer.model:
        return None
    for status in offer.statuses:
        if status.variant.name == model:
            return status
    names = ", ".join([offer.model, *(status.variant.name for status in offer.statuses)])
    raise ModelNotFoundError(f"there is no model {model!r} here; there are {names}", param="model")


def _by_sparsity(sparsity: float, offer: Offer) -> VariantStatus:
    for status in offer.statuses:
        # 0.1 + 0.2 is meant to be 0.3; two served sparsities are never that close.
        if math.isclose(status.variant.sparsity, sparsity, rel_tol=0, abs_tol=1e-9):
            return status
    raise SparsityNotServedError(f"sparsity {sparsity:g} is not served; {_served(offer)}", param="sparsity")


def _served(offer: Offer) -> str:
    ready = [s.variant.sparsity for s in offer.statuses if s.state is not VariantState.RETIRING]
    return f"served are {', '.join(f'{sparsity:g}' for sparsity in ready)}"
