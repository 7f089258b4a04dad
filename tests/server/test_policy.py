"""A request gets exactly what it asks for, or an error that says what there is."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.probing.verdicts import Evidence, Verdict
from server.engine.variant import Variant
from server.errors import (
    DegradedVariantError,
    InvalidValueError,
    ModelNotFoundError,
    RequestError,
    SparsityNotServedError,
    UnsafeSparsityError,
    VariantConflictError,
)
from server.policy import Ask, Decision, Reason, VariantPolicy
from server.variants import Offer, VariantState, VariantStatus, variant_name
from tests.server.evidence import evidence

POLICY = VariantPolicy(safe_sparsity=0.2, allow_unsafe=False)
GENEROUS = VariantPolicy(safe_sparsity=0.2, allow_unsafe=True)
FALLING_BACK = VariantPolicy(safe_sparsity=0.2, allow_unsafe=True, on_degraded="fallback")
SPARSITIES = (0.0, 0.15, 0.3, 0.35)

PROVEN = evidence(Verdict.SAFE, drop_high=0.005)
ALMOST = evidence(Verdict.SAFE, drop_high=0.02)
UNPROVEN = evidence(Verdict.UNPROVEN, drop_high=0.005)
BAD = evidence(Verdict.DEGRADED, drop_low=0.1, drop_high=0.2)


def offer(*, retiring: tuple[str, ...] = (), **known: Evidence) -> Offer:
    statuses = []
    for sparsity in SPARSITIES:
        name = variant_name("mini", sparsity)
        tag = name.partition(":")[2]
        variant = Variant(name, sparsity, sparsity, (8,), 8, 16)
        verdict = known[tag].verdict if tag in known else None
        state = VariantState.DEGRADED if verdict is Verdict.DEGRADED else VariantState.READY
        if tag in retiring:
            state = VariantState.RETIRING
        statuses.append(VariantStatus(variant, state, 0, sparsity == 0.15, known.get(tag)))
    return Offer("mini", tuple(statuses))


def resolve(ask: Ask, given: Offer, *, policy: VariantPolicy = POLICY, load: float = 0.0) -> Decision:
    return policy.resolve(ask, given, load)


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (Ask(), 0.15),
        (Ask(model="mini"), 0.15),
        (Ask(model="mini:s0"), 0.0),
        (Ask(sparsity=0.0), 0.0),
        (Ask(model="mini", sparsity=0.0), 0.0),
        (Ask(model="mini:s15", sparsity=0.15), 0.15),
        (Ask(sparsity=0.1 + 0.2, allow_unsafe=True), 0.3),
        (Ask(model="mini:s35", allow_unsafe=True), 0.35),
    ],
)
def test_an_ask_gets_what_it_names(ask: Ask, expected: float) -> None:
    assert resolve(ask, offer()).variant.sparsity == expected


@pytest.mark.parametrize(
    ("ask", "error", "told"),
    [
        (Ask(sparsity=0.1), SparsityNotServedError, "served are 0, 0.15, 0.3, 0.35"),
        (Ask(sparsity=0.1501), SparsityNotServedError, "0.1501"),
        (Ask(model="maxi"), ModelNotFoundError, "mini:s15"),
        (Ask(model="mini:s16"), ModelNotFoundError, "mini:s15"),
        (Ask(model="mini:s15", sparsity=0.0), InvalidValueError, "different variants"),
        (Ask(model="mini:s30"), UnsafeSparsityError, "allow_unsafe"),
        (Ask(sparsity=0.3), UnsafeSparsityError, "0.2"),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_can(ask: Ask, error: type[RequestError], told: str) -> None:
    with pytest.raises(error, match=told):
        resolve(ask, offer())


def test_the_operator_can_allow_unsafe_for_everyone() -> None:
    assert resolve(Ask(sparsity=0.35), offer(), policy=GENEROUS).variant.sparsity == 0.35


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (Ask(), Reason.DEFAULT),
        (Ask(model="mini"), Reason.DEFAULT),
        (Ask(model="mini:s15"), Reason.REQUESTED),
        (Ask(sparsity=0.15), Reason.REQUESTED),
    ],
)
def test_the_answer_says_whether_the_variant_was_asked_for(ask: Ask, reason: Reason) -> None:
    decision = resolve(ask, offer())
    assert (decision.reason, decision.instead_of, decision.accuracy_drop) == (reason, None, None)


def test_a_retiring_variant_is_refused_to_everyone() -> None:
    for insist in (False, True):
        with pytest.raises(VariantConflictError, match=r"mini:s0.*served are 0\.15, 0\.3"):
            resolve(Ask(sparsity=0.0, allow_unsafe=insist), offer(retiring=("s0",)))


@pytest.mark.parametrize("ask", [Ask(), Ask(sparsity=0.15), Ask(model="mini:s15")])
def test_a_degraded_variant_is_refused_with_its_evidence_unless_the_caller_insists(ask: Ask) -> None:
    with pytest.raises(
        DegradedVariantError, match=r"3 points.*allow_unsafe.*not degraded are 0, 0\.35$"
    ) as refused:
        resolve(ask, offer(s15=BAD, s30=BAD), policy=GENEROUS)
    assert refused.value.evidence == BAD
    decision = resolve(replace(ask, allow_unsafe=True), offer(s15=BAD))
    assert (decision.variant.sparsity, decision.instead_of) == (0.15, None)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({}, 0.0),  # the densest needs no proof
        ({"s15": PROVEN}, 0.15),
        ({"s15": PROVEN, "s30": ALMOST}, 0.3),
        ({"s15": PROVEN, "s30": UNPROVEN}, 0.15),
        ({"s15": UNPROVEN, "s30": BAD}, 0.0),
    ],
)
def test_the_next_denser_safe_variant_stands_in(known: dict[str, Evidence], expected: float) -> None:
    decision = resolve(Ask(sparsity=0.35), offer(s35=BAD, **known), policy=FALLING_BACK)
    assert decision == Decision(
        offer().statuses[SPARSITIES.index(expected)].variant, Reason.DEGRADED_FALLBACK, instead_of="mini:s35"
    )


def test_nothing_stands_in_where_the_caller_insists() -> None:
    decision = resolve(Ask(sparsity=0.35, allow_unsafe=True), offer(s35=BAD), policy=FALLING_BACK)
    assert (decision.variant.sparsity, decision.reason) == (0.35, Reason.REQUESTED)


def test_a_retiring_variant_stands_in_for_none() -> None:
    given = offer(retiring=("s0", "s30"), s30=PROVEN, s35=BAD)
    assert resolve(Ask(sparsity=0.35), given, policy=FALLING_BACK).variant.sparsity == 0.15


def corrected(given: Offer, index: int, **known: Any) -> Offer:
    """With a variant that has a delta after the plain one at `index`."""
    plain = given.statuses[index]
    variant = replace(plain.variant, name=f"{plain.variant.name}+a")
    more = replace(plain, variant=variant, is_default=False, **known)
    return Offer("mini", (*given.statuses[: index + 1], more, *given.statuses[index + 1 :]))


@pytest.mark.parametrize(("plain", "expected"), [(PROVEN, 0.15), (UNPROVEN, 0.0)])
def test_the_plain_variant_stands_in_for_the_corrected_one(plain: Evidence, expected: float) -> None:
    given = corrected(offer(s15=plain), 1, state=VariantState.DEGRADED, evidence=BAD)
    assert resolve(Ask(sparsity=0.15), given, policy=FALLING_BACK).variant.sparsity == expected


def test_the_densest_stands_in_even_for_one_of_its_own_sparsity() -> None:
    given = corrected(offer(), 0, state=VariantState.DEGRADED, evidence=BAD)
    decision = resolve(Ask(sparsity=0.0), given, policy=FALLING_BACK)
    assert (decision.variant.name, decision.instead_of) == ("mini:s0", "mini:s0+a")


@pytest.mark.parametrize(
    ("stated", "load", "known", "expected"),
    [
        (None, 0.0, {}, 0.0),
        (None, 0.0, {"s15": PROVEN}, 0.15),
        (None, 0.0, {"s15": PROVEN, "s30": ALMOST}, 0.15),
        (None, 0.51, {"s15": PROVEN, "s30": ALMOST}, 0.3),  # 0.01 leans to 0.02
        (None, 0.49, {"s15": PROVEN, "s30": ALMOST}, 0.15),
        (0.02, 0.0, {"s15": PROVEN, "s30": ALMOST}, 0.3),
        (0.01, 1.0, {"s15": PROVEN, "s30": ALMOST}, 0.15),  # a word is a word, whatever the load
        (0.004, 1.0, {"s15": PROVEN, "s30": ALMOST}, 0.0),
        (1.0, 1.0, {"s15": UNPROVEN, "s30": BAD}, 0.0),
        (None, 1.0, {"s30": ALMOST, "s35": evidence(Verdict.SAFE, drop_high=0.031)}, 0.3),
    ],
)
def test_auto_takes_the_sparsest_that_is_proven(
    stated: float | None, load: float, known: dict[str, Evidence], expected: float
) -> None:
    ask = Ask(sparsity="auto", max_accuracy_drop=stated)
    decision = resolve(ask, offer(**known), policy=GENEROUS, load=load)
    assert decision.variant.sparsity == expected
    assert decision.reason is (Reason.AUTO_PROVEN if expected else Reason.AUTO_DENSEST)
    assert decision.accuracy_drop == pytest.approx(0.01 + 0.02 * load if stated is None else stated)


def test_auto_stays_within_the_safe_margin_and_in_service() -> None:
    known = {"s15": PROVEN, "s30": PROVEN}
    assert resolve(Ask(sparsity="auto"), offer(**known)).variant.sparsity == 0.15
    assert resolve(Ask(sparsity="auto", allow_unsafe=True), offer(**known)).variant.sparsity == 0.3
    leaving = offer(retiring=("s15", "s0"), **known)
    with pytest.raises(UnsafeSparsityError, match="mini:s30"):
        resolve(Ask(sparsity="auto"), leaving)


def test_auto_goes_with_the_models_name_alone() -> None:
    assert resolve(Ask(model="mini", sparsity="auto"), offer(s15=PROVEN)).variant.sparsity == 0.15
    with pytest.raises(InvalidValueError, match="model mini"):
        resolve(Ask(model="mini:s15", sparsity="auto"), offer(s15=PROVEN))
    with pytest.raises(ModelNotFoundError):
        resolve(Ask(model="maxi", sparsity="auto"), offer())


@given(
    known=st.dictionaries(
        st.sampled_from(["s15", "s30", "s35"]),
        st.builds(evidence, st.sampled_from(Verdict), drop_high=st.floats(-1, 1)),
    ),
    loads=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    stated=st.none() | st.floats(0, 1),
)
def test_more_load_never_makes_auto_denser_nor_takes_what_is_not_safe(
    known: dict[str, Evidence], loads: tuple[float, float], stated: float | None
) -> None:
    ask = Ask(sparsity="auto", max_accuracy_drop=stated)
    idler, busier = (
        resolve(ask, offer(**known), policy=GENEROUS, load=load).variant for load in sorted(loads)
    )
    assert idler.sparsity <= busier.sparsity
    if busier.sparsity:
        evidence_for_it = known[busier.name.partition(":")[2]]
        assert evidence_for_it.verdict is Verdict.SAFE
        assert evidence_for_it.drop_high <= (0.03 if stated is None else stated)


def test_a_corrected_variant_is_meant_by_its_sparsity_and_the_plain_one_by_name() -> None:
    both = corrected(offer(), 1)
    for ask, expected in (
        (Ask(sparsity=0.15), "mini:s15+a"),
        (Ask(model="mini:s15"), "mini:s15"),
        (Ask(model="mini:s15", sparsity=0.15), "mini:s15"),
        (Ask(model="mini:s15+a"), "mini:s15+a"),
        (Ask(model="mini:s15+a", sparsity=0.15), "mini:s15+a"),
    ):
        assert resolve(ask, both).variant.name == expected
    with pytest.raises(SparsityNotServedError, match=r"served are 0, 0\.15, 0\.3, 0\.35"):
        resolve(Ask(sparsity=0.1), both)
