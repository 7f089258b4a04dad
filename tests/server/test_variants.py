"""The registry: names, widths within what is loaded, retirement that waits for the last request."""

from collections.abc import Mapping, Sequence

import pytest
import torch

from eval.probing.verdicts import Evidence, Verdict, VerdictChange
from pruning.delta import Delta, DeltaProvenance, LowRank
from pruning.errors import ForeignDeltaError
from server.engine.delta import ServedDelta, TorchDelta
from server.errors import ModelNotFoundError, VariantConflictError
from server.loading.deltas import NamedDelta
from server.policy import Ask, VariantPolicy
from server.variants import VariantBuilder, VariantRegistry, VariantState, variant_name
from tests.server.evidence import evidence

RESIDENT = 90


class Weights:
    """Ten layers' worth of numbers in place of an engine."""

    resident_widths = (RESIDENT,) * 2
    weight_bytes = 4 * RESIDENT

    def parameters(self, widths: tuple[int, ...]) -> int:
        return sum(widths)

    def standalone_bytes(self, widths: tuple[int, ...], delta_parameters: int = 0) -> int:
        return 2 * (sum(widths) + delta_parameters)

    def load_delta(self, delta: Delta) -> ServedDelta:
        return TorchDelta.of(delta, (1, 1, 1), torch.empty(0))  # float32


def widths_at(sparsity: float) -> tuple[int, ...]:
    return (round(100 * (1 - sparsity)),) * 2


class Known:
    """Evidence by name, in place of a prober."""

    def __init__(self, known: Mapping[str, Evidence]) -> None:
        self._known = known

    def evidence(self, variant: str) -> Evidence | None:
        return self._known.get(variant)

    def guard_evidence(self, variant: str) -> None:
        return None

    def changes(self, variant: str) -> Sequence[VerdictChange]:
        return ()


def builder() -> VariantBuilder:
    return VariantBuilder(
        "mini", widths_at, lambda widths: 1 - sum(widths) / 200, Weights(), fingerprint="f", ranking="r"
    )


def delta(name: str, sparsity: float, **made_for: object) -> NamedDelta:
    """Of rank 1, to 5 outputs."""
    provenance = DeltaProvenance(
        **{
            "model_name": "mini",
            "model": "f",
            "task": "counting",
            "ranking": "r",
            "sparsity": sparsity,
            "widths": widths_at(sparsity),
            "method": name,
            "settings": {},
            "created": "",
            **made_for,
        }
    )
    layers = tuple({"down_proj": LowRank(torch.ones(1, k), torch.ones(5, 1))} for k in provenance.widths)
    return NamedDelta(name, Delta(provenance, layers))


def registry(*sparsities: float) -> VariantRegistry:
    return VariantRegistry(builder(), sparsities, sparsities[0])


def names(of: VariantRegistry) -> list[str]:
    return [status.variant.name for status in of.offer().statuses]


def test_names_carry_percent() -> None:
    assert [variant_name("mini", s) for s in (0.0, 0.15, 0.125, 0.07)] == [
        "mini:s0",
        "mini:s15",
        "mini:s12.5",
        "mini:s7",
    ]


def test_variants_are_sorted_views_of_the_resident_weights() -> None:
    variants = registry(0.1, 0.5, 0.2)
    assert names(variants) == ["mini:s10", "mini:s20", "mini:s50"]
    for status in variants.offer().statuses:
        variant = status.variant
        assert variant.marginal_bytes == 0
        assert variant.standalone_bytes == 2 * variant.parameters <= variants.resident_bytes
        assert variant.exact_sparsity == pytest.approx(variant.sparsity)
    assert [status.is_default for status in variants.offer().statuses] == [True, False, False]


def test_added_variants_must_be_new_and_fit_what_was_loaded() -> None:
    variants = registry(0.1)
    assert variants.add(variants.build(0.3)).state is VariantState.READY
    with pytest.raises(VariantConflictError, match="served already"):
        variants.add(variants.build(0.3))
    with pytest.raises(VariantConflictError, match=r"95 neurons.*90 were loaded: restart"):
        variants.build(0.05)
    assert names(variants) == ["mini:s10", "mini:s30"]


def test_a_retiring_variant_goes_with_its_last_request() -> None:
    variants = registry(0.1, 0.2)
    variant = variants.offer().statuses[1].variant
    with variants.lease(variant):
        with variants.lease(variant):
            assert variants.retire("mini:s20").in_flight == 2
            with pytest.raises(VariantConflictError, match="being retired"):
                VariantPolicy(0.5, False).resolve(Ask(sparsity=0.2), variants.offer(), load=0.0)
        assert names(variants) == ["mini:s10", "mini:s20"]
        variants.retire("mini:s20")  # once more changes nothing
        variants.consult(Known({"mini:s20": evidence(Verdict.SAFE)}))  # neither does evidence
        assert variants.offer().statuses[1].state is VariantState.RETIRING
    assert names(variants) == ["mini:s10"]


def test_an_idle_variant_goes_at_once_and_can_come_back() -> None:
    variants = registry(0.1, 0.2)
    variants.retire("mini:s20")
    assert names(variants) == ["mini:s10"]
    variants.add(variants.build(0.2))
    assert names(variants) == ["mini:s10", "mini:s20"]


def test_the_default_variant_stays_and_an_unknown_one_is_named() -> None:
    variants = registry(0.1, 0.2)
    with pytest.raises(VariantConflictError, match="default"):
        variants.retire("mini:s10")
    with pytest.raises(ModelNotFoundError, match="mini:s20"):
        variants.retire("mini:s99")


@pytest.mark.parametrize(
    ("verdict", "state"),
    [
        (Verdict.UNPROVEN, VariantState.READY),
        (Verdict.SAFE, VariantState.READY),
        (Verdict.DEGRADED, VariantState.DEGRADED),
    ],
)
def test_evidence_against_a_variant_degrades_it(verdict: Verdict, state: VariantState) -> None:
    variants, known = registry(0.1, 0.2), {"mini:s20": evidence(verdict)}
    variants.consult(Known(known))
    densest, judged = variants.offer().statuses
    assert (judged.state, judged.evidence) == (state, known["mini:s20"])
    assert (densest.state, densest.evidence) == (VariantState.READY, None)
    known["mini:s20"] = evidence(Verdict.SAFE)
    assert variants.offer().statuses[1].state is VariantState.READY


def test_the_densest_in_service_is_never_degraded() -> None:
    variants = VariantRegistry(builder(), (0.1, 0.2), default_sparsity=0.2)
    variants.consult(Known(dict.fromkeys(["mini:s10", "mini:s20"], evidence(Verdict.DEGRADED))))
    assert [s.state for s in variants.offer().statuses] == [VariantState.READY, VariantState.DEGRADED]
    with variants.lease(variants.in_service()[0]):
        variants.retire("mini:s10")
        assert [s.state for s in variants.offer().statuses] == [VariantState.RETIRING, VariantState.READY]
        assert [variant.name for variant in variants.in_service()] == ["mini:s20"]


def test_a_corrected_variant_stands_beside_the_plain_one_and_costs_its_delta() -> None:
    variants = VariantRegistry(
        builder(), (0.1, 0.3), 0.1, [delta("a", 0.3), delta("b", 0.3), delta("c", 0.2)]
    )
    assert names(variants) == ["mini:s10", "mini:s20+c", "mini:s30", "mini:s30+a", "mini:s30+b"]
    plain, corrected = (variants.offer().statuses[i].variant for i in (2, 3))
    numbers = 2 * (70 + 5)
    assert corrected.widths == plain.widths
    assert corrected.parameters == plain.parameters + numbers
    assert corrected.standalone_bytes == plain.standalone_bytes + 2 * numbers
    assert (plain.marginal_bytes, corrected.marginal_bytes) == (0, 4 * numbers)
    assert len({status.variant.kv_key for status in variants.offer().statuses}) == 5
    with pytest.raises(VariantConflictError, match=r"mini:s30\+a is served already"):
        variants.add(variants.build(0.3, delta("a", 0.3)))


def test_a_sparsity_means_the_corrected_variant_the_newest_one() -> None:
    variants = VariantRegistry(builder(), (0.1, 0.3), 0.3, [delta("a", 0.3)])
    assert [s.variant.name for s in variants.offer().statuses if s.is_default] == ["mini:s30+a"]

    def meant() -> str | None:
        status = variants.offer().at(0.1 + 0.2)
        return status and status.variant.name

    assert meant() == "mini:s30+a"
    variants.add(variants.build(0.3, delta("b", 0.3)))
    assert meant() == "mini:s30+b"
    assert [s.variant.name for s in variants.offer().statuses if s.is_default] == ["mini:s30+a"]
    b = variants.offer().at(0.3)
    assert b is not None
    with variants.lease(b.variant):
        variants.retire("mini:s30+b")
        assert meant() == "mini:s30+a", "one that goes is not meant any more"
    assert variants.offer().at(0.2) is None


@pytest.mark.parametrize("made_for", [{"model": "x"}, {"ranking": "x"}, {"widths": (70, 69)}])
def test_a_delta_of_something_else_is_refused(made_for: dict[str, object]) -> None:
    with pytest.raises(ForeignDeltaError, match="belongs to another variant"):
        builder().build(0.3, delta("a", 0.3, **made_for))
