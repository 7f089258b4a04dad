"""A request gets exactly what it asks for, or an error that says what there is."""

import pytest

from server.engine.variant import Variant
from server.errors import (
    InvalidValueError,
    ModelNotFoundError,
    RequestError,
    SparsityNotServedError,
    UnsafeSparsityError,
    VariantConflictError,
)
from server.policy import Ask, VariantPolicy
from server.variants import Offer, VariantState, VariantStatus, variant_name

POLICY = VariantPolicy(safe_sparsity=0.2, allow_unsafe=False)


def offer(**states: VariantState) -> Offer:
    statuses = []
    for sparsity in (0.0, 0.15, 0.3, 0.35):
        name = variant_name("mini", sparsity)
        variant = Variant(name, sparsity, sparsity, (8,), 8, 16)
        state = states.get(name.partition(":")[2], VariantState.READY)
        statuses.append(VariantStatus(variant, state, in_flight=0, is_default=sparsity == 0.15))
    return Offer("mini", tuple(statuses))


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
    assert POLICY.resolve(ask, offer()).sparsity == expected


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
        POLICY.resolve(ask, offer())


def test_the_operator_can_allow_unsafe_for_everyone() -> None:
    generous = VariantPolicy(safe_sparsity=0.2, allow_unsafe=True)
    assert generous.resolve(Ask(sparsity=0.35), offer()).sparsity == 0.35


@pytest.mark.parametrize(
    ("state", "insist", "served"),
    [
        (VariantState.READY, False, True),
        (VariantState.DEGRADED, False, True),
        (VariantState.DISABLED, False, False),
        (VariantState.DISABLED, True, True),
        (VariantState.RETIRING, True, False),
    ],
)
def test_the_state_decides(state: VariantState, insist: bool, served: bool) -> None:
    ask = Ask(sparsity=0.0, allow_unsafe=insist)
    if served:
        assert POLICY.resolve(ask, offer(s0=state)).sparsity == 0.0
    else:
        with pytest.raises(VariantConflictError, match=r"mini:s0.*served are"):
            POLICY.resolve(ask, offer(s0=state))
