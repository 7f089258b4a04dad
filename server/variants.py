"""The variants on offer: what they are called and cost, what is known of each, who is using them.

Belongs to the event loop. Builds variants from widths and deltas; touches no shared weights, and decides for
no request which variant it gets (server/policy.py).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from eval.probing.guard import GuardEvidence
from eval.probing.verdicts import Evidence, Verdict, VerdictChange
from pruning.delta import Delta
from server.engine.delta import ServedDelta
from server.engine.variant import Variant
from server.errors import ModelNotFoundError, VariantConflictError
from server.loading.deltas import NamedDelta


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
        guard: how near it is to the densest variant on general prompts.
    """

    variant: Variant
    state: VariantState
    in_flight: int
    is_default: bool
    evidence: Evidence | None = None
    changes: Sequence[VerdictChange] = ()
    guard: GuardEvidence | None = None


@dataclass(frozen=True)
class Offer:
    """What a request can choose from: the model's own name and every variant, sparsest last.

    Of one sparsity the uncorrected variant comes first, then those with deltas as they came. The densest that
    does not retire is never degraded: it is what the others are held to.
    """

    model: str
    statuses: tuple[VariantStatus, ...]

    def at(self, sparsity: float) -> VariantStatus | None:
        """What a sparsity alone means: the corrected variant where there is one, of several the newest."""
        found = [s for s in self.statuses if is_same_sparsity(s.variant.sparsity, sparsity)]
        staying = [status for status in found if status.state is not VariantState.RETIRING] or found
        return staying[-1] if staying else None


class WeightBook(Protocol):
    """What the registry wants to know of the engine's weights."""

    @property
    def resident_widths(self) -> tuple[int, ...]: ...

    @property
    def weight_bytes(self) -> int: ...

    def parameters(self, widths: tuple[int, ...]) -> int: ...

    def standalone_bytes(self, widths: tuple[int, ...], delta_parameters: int = 0) -> int: ...

    def load_delta(self, delta: Delta) -> ServedDelta: ...


class EvidenceSource(Protocol):
    """Knows variants by name. Asked for every offer, so it answers from memory."""

    def evidence(self, variant: str) -> Evidence | None: ...

    def changes(self, variant: str) -> Sequence[VerdictChange]: ...

    def guard_evidence(self, variant: str) -> GuardEvidence | None: ...


class VariantBuilder:
    """Makes a variant of any sparsity that the resident weights allow.

    Args:
        model: its name, the first part of every variant's.
        widths_at: sparsity -> neurons kept, one number a layer.
        exact_sparsity: widths -> the share they leave out.
        weights: what they cost.
        fingerprint, ranking: digests of the checkpoint and of its order of neurons; deltas are held to them.
    """

    def __init__(
        self,
        model: str,
        widths_at: Callable[[float], tuple[int, ...]],
        exact_sparsity: Callable[[tuple[int, ...]], float],
        weights: WeightBook,
        *,
        fingerprint: str,
        ranking: str,
    ) -> None:
        self.model = model
        self.weights = weights
        self._widths_at = widths_at
        self._exact_sparsity = exact_sparsity
        self._fingerprint = fingerprint
        self._ranking = ranking

    def build(self, sparsity: float, named: NamedDelta | None = None) -> Variant:
        """A prefix of weights that are there: it takes microseconds and no memory. A delta of its own takes
        its bytes, and milliseconds a megabyte; any thread may build.

        Raises:
            VariantConflictError: it would be wider than what was loaded.
            ForeignDeltaError: the delta is of another model, ranking or width.
        """
        widths = self._widths_at(sparsity)
        if named is not None:
            named.delta.check(model=self._fingerprint, ranking=self._ranking, widths=widths)
        resident = self.weights.resident_widths
        too_wide = [layer for layer, width in enumerate(widths) if width > resident[layer]]
        if too_wide:
            layer = too_wide[0]
            raise VariantConflictError(
                f"sparsity {sparsity:g} keeps {widths[layer]} neurons of layer {layer}, but only "
                f"{resident[layer]} were loaded: restart with a smallest sparsity of {sparsity:g} or less"
            )
        delta = None if named is None else self.weights.load_delta(named.delta)
        delta_parameters = 0 if delta is None else delta.num_parameters
        return Variant(
            name=variant_name(self.model, sparsity, named.name if named else None),
            sparsity=sparsity,
            exact_sparsity=self._exact_sparsity(widths),
            widths=widths,
            parameters=self.weights.parameters(widths) + delta_parameters,
            standalone_bytes=self.weights.standalone_bytes(widths, delta_parameters),
            marginal_bytes=0 if delta is None else delta.num_bytes,
            delta=delta,
        )


class VariantRegistry:
    """All variants of one model, the default one among them: what `default_sparsity` means at the start.

    Args:
        deltas: each makes a variant of its own, of the sparsity that it was made for.

    Raises:
        VariantConflictError: two variants share a name.
        ForeignDeltaError: a delta is of another model, ranking or width.
    """

    def __init__(
        self,
        builder: VariantBuilder,
        sparsities: Sequence[float],
        default_sparsity: float,
        deltas: Sequence[NamedDelta] = (),
    ) -> None:
        assert default_sparsity in sparsities, "the settings see to it"
        self._builder = builder
        self._default = ""
        self._entries: dict[str, _Entry] = {}
        self._evidence_source: EvidenceSource | None = None
        for sparsity in sparsities:
            self.add(builder.build(sparsity))
        for named in deltas:
            self.add(builder.build(named.delta.provenance.sparsity, named))
        default = self.offer().at(default_sparsity)
        assert default is not None, "it has just been added"
        self._default = default.variant.name

    @property
    def model(self) -> str:
        return self._builder.model

    @property
    def resident_bytes(self) -> int:
        """Weight bytes that all variants share."""
        return self._builder.weights.weight_bytes

    def offer(self) -> Offer:
        """Every variant, sparsest last."""
        entries = sorted(self._entries.values(), key=lambda entry: _by_sparsity(entry.variant))
        return Offer(self.model, tuple(self._status(entry) for entry in entries))

    def in_service(self) -> list[Variant]:
        """The variants that take requests, sparsest last, whatever is known of them."""
        variants = [entry.variant for entry in self._entries.values() if not entry.is_retiring]
        return sorted(variants, key=_by_sparsity)

    def consult(self, source: EvidenceSource) -> None:
        """From now on offers say what `source` knows. It may itself ask what is `in_service`."""
        self._evidence_source = source

    def build(self, sparsity: float, named: NamedDelta | None = None) -> Variant:
        """A variant to `add`, on any thread. Raises as `VariantBuilder.build`."""
        return self._builder.build(sparsity, named)

    def add(self, variant: Variant) -> VariantStatus:
        """Takes up a variant. Raises VariantConflictError where one of that name is there."""
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
            guard=source.guard_evidence(name) if source else None,
        )

    def _state(self, entry: "_Entry", evidence: Evidence | None) -> VariantState:
        if entry.is_retiring:
            return VariantState.RETIRING
        if evidence is None or evidence.verdict is not Verdict.DEGRADED:
            return VariantState.READY
        is_densest = entry.variant == self.in_service()[0]
        return VariantState.READY if is_densest else VariantState.DEGRADED


def variant_name(model: str, sparsity: float, delta: str | None = None) -> str:
    """``math-mini:s12.5`` for 0.125; ``math-mini:s12.5+code`` with the delta ``code``."""
    return f"{model}:s{100 * sparsity:g}" + ("" if delta is None else f"+{delta}")


def is_same_sparsity(one: float, other: float) -> bool:
    """0.1 + 0.2 is meant to be 0.3; two served sparsities are never that close."""
    return math.isclose(one, other, rel_tol=0, abs_tol=1e-9)


def _by_sparsity(variant: Variant) -> tuple[float, bool]:
    return variant.sparsity, variant.delta is not None


@dataclass
class _Entry:
    variant: Variant
    is_retiring: bool = False
    in_flight: int = 0
