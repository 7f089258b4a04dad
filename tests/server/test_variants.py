"""The registry: names, widths within what is loaded, retirement that waits for the last request."""

from collections.abc import Mapping, Sequence

import pytest

from eval.verdicts import Evidence, Verdict, VerdictChange
from server.errors import ModelNotFoundError, VariantConflictError
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

    def standalone_bytes(self, widths: tuple[int, ...]) -> int:
        return 2 * sum(widths)


def widths_at(sparsity: float) -> tuple[int, ...]:
    return (round(100 * (1 - sparsity)),) * 2


class Known:
    """Evidence by name, in place of a prober."""

    def __init__(self, known: Mapping[str, Evidence]) -> None:
        self._known = known

    def evidence(self, variant: str) -> Evidence | None:
        return self._known.get(variant)

    def changes(self, variant: str) -> Sequence[VerdictChange]:
        return ()


def builder() -> VariantBuilder:
    return VariantBuilder("mini", widths_at, lambda widths: 1 - sum(widths) / 200, Weights())


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
    assert variants.add(0.3).state is VariantState.READY
    with pytest.raises(VariantConflictError, match="served already"):
        variants.add(0.3)
    with pytest.raises(VariantConflictError, match=r"95 neurons.*90 were loaded: restart"):
        variants.add(0.05)
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
    variants.add(0.2)
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
