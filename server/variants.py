"""The variants on offer: what they are called and cost, what is known of each, who is using them.

Belongs to the event loop. Builds variants from widths; touches no weights, and decides for no request
which variant it gets (server/policy.py).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from eval.verdicts import Evidence, Verdict, VerdictChange
from server.engine.variant import Variant
from server.errors import ModelNotFoundError, VariantConflictError


class VariantState(str, Enum):
    """What may be expected of a variant."""

    READY = "ready"
    DEGRADED = "degraded"  # evidence speaks against it: served only to those who insist
    RETIRING = "retiring"  # finishes what it runs, takes nothing new, then is gone


@dataclass(frozen=True)
class VariantStatus:
    """A variant at one moment.

    Attributes:
        in_flight: requests that hold it.
        evidence: what is known of it; None before anything is.
        changes: the last changes of its verdict, oldest first.
    """

    variant: Variant
    state: VariantState
    in_flight: int
    is_default: bool
    evidence: Evidence | None = None
    changes: Sequence[VerdictChange] = ()


@dataclass(frozen=True)
class Offer:
    """What a request can choose from: the model's own name and every variant, sparsest last.

    The densest that does not retire is never degraded: it is what the others are held to.
    """

    model: str
    statuses: tuple[VariantStatus, ...]


class WeightBook(Protocol):
    """What the registry wants to know of the engine's weights."""

    @property
    def resident_widths(self) -> tuple[int, ...]: ...

    @property
    def weight_bytes(self) -> int: ...

    def parameters(self, widths: tuple[int, ...]) -> int: ...

    def standalone_bytes(self, widths: tuple[int, ...]) -> int: ...


class EvidenceSource(Protocol):
    """Knows variants by name. Asked for every offer, so it answers from memory."""

    def evidence(self, variant: str) -> Evidence | None: ...

    def changes(self, variant: str) -> Sequence[VerdictChange]: ...


class VariantBuilder:
    """Makes a variant of any sparsity that the resident weights allow.

    Args:
        model: its name, the first part of every variant's.
        widths_at: sparsity -> neurons kept, one number a layer.
        exact_sparsity: widths -> the share they leave out.
        weights: what they cost.
    """

    def __init__(
        self,
        model: str,
        widths_at: Callable[[float], tuple[int, ...]],
        exact_sparsity: Callable[[tuple[int, ...]], float],
        weights: WeightBook,
    ) -> None:
        self.model = model
        self.weights = weights
        self._widths_at = widths_at
        self._exact_sparsity = exact_sparsity

    def build(self, sparsity: float) -> Variant:
        """Takes microseconds and no memory: the variant is a prefix of weights that are there.

        Raises:
            VariantConflictError: it would be wider than what was loaded.
        """
        widths = self._widths_at(sparsity)
        resident = self.weights.resident_widths
        too_wide = [layer for layer, width in enumerate(widths) if width > resident[layer]]
        if too_wide:
            layer = too_wide[0]
            raise VariantConflictError(
                f"sparsity {sparsity:g} keeps {widths[layer]} neurons of layer {layer}, but only "
                f"{resident[layer]} were loaded: restart with a smallest sparsity of {sparsity:g} or less"
            )
        return Variant(
            name=variant_name(self.model, sparsity),
            sparsity=sparsity,
            exact_sparsity=self._exact_sparsity(widths),
            widths=widths,
            parameters=self.weights.parameters(widths),
            standalone_bytes=self.weights.standalone_bytes(widths),
        )


class VariantRegistry:
    """All variants of one model, the default one among them.

    Raises:
        VariantConflictError: two of `sparsities` share a name.
    """

    def __init__(self, builder: VariantBuilder, sparsities: Sequence[float], default_sparsity: float) -> None:
        assert default_sparsity in sparsities, "the settings see to it"
        self._builder = builder
        self._default = variant_name(builder.model, default_sparsity)
        self._entries: dict[str, _Entry] = {}
        self._evidence_source: EvidenceSource | None = None
        for sparsity in sparsities:
            self.add(sparsity)

    @property
    def model(self) -> str:
        return self._builder.model

    @property
    def resident_bytes(self) -> int:
        """Weight bytes that all variants share."""
        return self._builder.weights.weight_bytes

    def offer(self) -> Offer:
        """Every variant, sparsest last."""
        entries = sorted(self._entries.values(), key=lambda entry: entry.variant.sparsity)
        return Offer(self.model, tuple(self._status(entry) for entry in entries))

    def in_service(self) -> list[Variant]:
        """The variants that take requests, sparsest last, whatever is known of them."""
        variants = [entry.variant for entry in self._entries.values() if not entry.is_retiring]
        return sorted(variants, key=lambda variant: variant.sparsity)

    def consult(self, source: EvidenceSource) -> None:
        """From now on offers say what `source` knows. It may itself ask what is `in_service`."""
        self._evidence_source = source

    def add(self, sparsity: float) -> VariantStatus:
        """Takes up a variant.

        Raises:
            VariantConflictError: one of that name is there, or the weights it needs are not.
        """
        variant = self._builder.build(sparsity)
        if variant.name in self._entries:
            raise VariantConflictError(f"{variant.name} is served already")
        entry = self._entries[variant.name] = _Entry(variant)
        return self._status(entry)

    def retire(self, name: str) -> VariantStatus:
        """Takes no new requests for a variant, and forgets it when its last one has ended.

        Raises:
            ModelNotFoundError: there is none of that name.
            VariantConflictError: it is the default one.
        """
        entry = self._entry(name)
        if name == self._default:
            raise VariantConflictError(
                f"{name} is the default variant and stays: restart with another default_sparsity to drop it"
            )
        entry.is_retiring = True
        self._forget_if_drained(entry)
        return self._status(entry)

    @contextmanager
    def lease(self, variant: Variant) -> Iterator[None]:
        """Holds `variant` for one request; while held, it is not forgotten."""
        entry = self._entry(variant.name)
        entry.in_flight += 1
        try:
            yield
        finally:
            entry.in_flight -= 1
            self._forget_if_drained(entry)

    def _entry(self, name: str) -> "_Entry":
        if name not in self._entries:
            raise ModelNotFoundError(f"there is no variant {name!r}; there are {', '.join(self._entries)}")
        return self._entries[name]

    def _forget_if_drained(self, entry: "_Entry") -> None:
        if entry.is_retiring and entry.in_flight == 0:
            del self._entries[entry.variant.name]

    def _status(self, entry: "_Entry") -> VariantStatus:
        name, source = entry.variant.name, self._evidence_source
        evidence = source.evidence(name) if source else None
        return VariantStatus(
            entry.variant,
            self._state(entry, evidence),
            entry.in_flight,
            is_default=name == self._default,
            evidence=evidence,
            changes=source.changes(name) if source else (),
        )

    def _state(self, entry: "_Entry", evidence: Evidence | None) -> VariantState:
        if entry.is_retiring:
            return VariantState.RETIRING
        if evidence is None or evidence.verdict is not Verdict.DEGRADED:
            return VariantState.READY
        is_densest = entry.variant == self.in_service()[0]
        return VariantState.READY if is_densest else VariantState.DEGRADED


def variant_name(model: str, sparsity: float) -> str:
    """``math-mini:s12.5`` for 0.125."""
    return f"{model}:s{100 * sparsity:g}"


@dataclass
class _Entry:
    variant: Variant
    is_retiring: bool = False
    in_flight: int = 0
