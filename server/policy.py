"""Which variant a request gets. Pure: an ask, an offer with its evidence and a load in, a decision out."""

from dataclasses import dataclass
from enum import Enum
from itertools import takewhile
from typing import Literal

from eval.probing.verdicts import Evidence, Verdict
from server.engine.variant import Variant
from server.errors import (
    DegradedVariantError,
    InvalidValueError,
    ModelNotFoundError,
    SparsityNotServedError,
    UnsafeSparsityError,
    VariantConflictError,
)
from server.variants import Offer, VariantState, VariantStatus, is_same_sparsity

AUTO: Literal["auto"] = "auto"


@dataclass(frozen=True)
class Ask:
    """What a request says about its variant. None is "whatever is the default".

    Attributes:
        max_accuracy_drop: with `sparsity` "auto", the accuracy that may be lost to the dense model.
    """

    model: str | None = None
    sparsity: float | Literal["auto"] | None = None
    allow_unsafe: bool = False
    max_accuracy_drop: float | None = None


class Reason(str, Enum):
    """Why a request got its variant."""

    REQUESTED = "requested"
    DEFAULT = "default"
    AUTO_PROVEN = "auto_proven"  # the sparsest that is proven to lose no more than the tolerance
    AUTO_DENSEST = "auto_densest"  # no pruned variant is
    DEGRADED_FALLBACK = "degraded_fallback"  # the variant meant is degraded, the next denser safe one answers


@dataclass(frozen=True)
class Decision:
    """A variant, and why it is this one.

    Attributes:
        instead_of: the name of the degraded variant that would have answered.
        accuracy_drop: what "auto" allowed to be lost.
    """

    variant: Variant
    reason: Reason
    instead_of: str | None = None
    accuracy_drop: float | None = None


@dataclass(frozen=True)
class VariantPolicy:
    """Gives a request exactly the variant it asks for, or an error; never a near one, unless told to.

    Attributes:
        safe_sparsity: beyond it a variant is served only where allowed.
        allow_unsafe: whether the operator allows it for everyone.
        on_degraded: whether a degraded variant is refused or replaced.
        auto_accuracy_drop, max_auto_accuracy_drop: what "auto" allows to be lost on an idle server, and on
            a full one.
    """

    safe_sparsity: float
    allow_unsafe: bool
    on_degraded: Literal["refuse", "fallback"] = "refuse"
    auto_accuracy_drop: float = 0.01
    max_auto_accuracy_drop: float = 0.03

    def resolve(self, ask: Ask, offer: Offer, load: float) -> Decision:
        """The variant for `ask`. `load` is the share of the queue that is taken, 0..1.

        Raises:
            ModelNotFoundError: the model's name is unknown.
            SparsityNotServedError: no variant has the sparsity.
            InvalidValueError: name and sparsity mean different variants.
            UnsafeSparsityError: it lies beyond the safe margin and nobody allowed that.
            VariantConflictError: it is about to go.
            DegradedVariantError: evidence speaks against it, and the caller does not insist.
        """
        if ask.sparsity == AUTO:
            return self._auto(ask, offer, load)
        status = self._find(ask, offer)
        self._check_margin(status.variant, ask)
        if status.state is VariantState.RETIRING:
            raise VariantConflictError(
                f"{status.variant.name} is being retired and takes no new requests; {_served(offer)}"
            )
        if status.state is VariantState.DEGRADED and not ask.allow_unsafe:
            return self._instead_of(status, offer)
        named = ask.sparsity is not None or _by_name(ask.model, offer) is not None
        return Decision(status.variant, Reason.REQUESTED if named else Reason.DEFAULT)

    def _auto(self, ask: Ask, offer: Offer, load: float) -> Decision:
        named = _by_name(ask.model, offer)
        if named is not None:
            raise InvalidValueError(
                f'model {named.variant.name} is one variant and sparsity "auto" any: give one of them, or '
                f"model {offer.model}",
                param="sparsity",
            )
        drop = ask.max_accuracy_drop
        if drop is None:
            drop = self.auto_accuracy_drop + load * (self.max_auto_accuracy_drop - self.auto_accuracy_drop)
        densest, *pruned = _in_service(offer)
        for status in reversed(pruned):
            if self._is_open(status.variant, ask) and _is_proven(status.evidence, drop):
                return Decision(status.variant, Reason.AUTO_PROVEN, accuracy_drop=drop)
        self._check_margin(densest.variant, ask)
        return Decision(densest.variant, Reason.AUTO_DENSEST, accuracy_drop=drop)

    def _instead_of(self, degraded: VariantStatus, offer: Offer) -> Decision:
        assert degraded.evidence is not None, "it is what the state comes from"
        variant = degraded.variant
        if self.on_degraded == "refuse":
            raise DegradedVariantError(
                f"{variant.name} is degraded: probes show that it loses more accuracy than the "
                f"{100 * self.max_auto_accuracy_drop:g} points that are tolerated; say "
                f'"allow_unsafe": true to have it all the same; {_served(offer, but_degraded=True)}',
                degraded.evidence,
                degraded.changes,
            )
        # Of its own sparsity the uncorrected variant counts as denser: it comes before in the offer.
        densest, *pruned = takewhile(lambda status: status.variant != variant, _in_service(offer))
        safe = [s for s in pruned if s.evidence is not None and s.evidence.verdict is Verdict.SAFE]
        answering = (safe[-1] if safe else densest).variant
        return Decision(answering, Reason.DEGRADED_FALLBACK, instead_of=variant.name)

    def _is_open(self, variant: Variant, ask: Ask) -> bool:
        return variant.sparsity <= self.safe_sparsity or self.allow_unsafe or ask.allow_unsafe

    def _check_margin(self, variant: Variant, ask: Ask) -> None:
        if not self._is_open(variant, ask):
            raise UnsafeSparsityError(
                f"{variant.name} removes {variant.sparsity:g}; up to {self.safe_sparsity:g} is safe "
                '(safe_sparsity): say "allow_unsafe": true to have it all the same',
                param="sparsity" if ask.sparsity is not None else "model",
            )

    def _find(self, ask: Ask, offer: Offer) -> VariantStatus:
        by_name = _by_name(ask.model, offer)
        if ask.sparsity is None:
            return by_name or next(status for status in offer.statuses if status.is_default)
        assert ask.sparsity != AUTO
        by_sparsity = _by_sparsity(ask.sparsity, offer)
        if by_name is None:
            return by_sparsity
        if not is_same_sparsity(by_name.variant.sparsity, ask.sparsity):
            raise InvalidValueError(
                f"model {by_name.variant.name} and sparsity {ask.sparsity:g} mean different variants: "
                "give one of them",
                param="sparsity",
            )
        return by_name


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
    status = offer.at(sparsity)
    if status is not None:
        return status
    raise SparsityNotServedError(f"sparsity {sparsity:g} is not served; {_served(offer)}", param="sparsity")


def _in_service(offer: Offer) -> list[VariantStatus]:
    """Never empty, for the default variant does not retire, and the first of them is never degraded."""
    return [status for status in offer.statuses if status.state is not VariantState.RETIRING]


def _is_proven(evidence: Evidence | None, drop: float) -> bool:
    return evidence is not None and evidence.verdict is Verdict.SAFE and evidence.drop_high <= drop


def _served(offer: Offer, *, but_degraded: bool = False) -> str:
    statuses = [s for s in _in_service(offer) if not but_degraded or s.state is not VariantState.DEGRADED]
    sparsities = dict.fromkeys(f"{status.variant.sparsity:g}" for status in statuses)
    return f"{'not degraded' if but_degraded else 'served'} are {', '.join(sparsities)}"
