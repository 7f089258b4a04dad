"""Divergences from recorded candidates: exact where all are recorded, never too large where some are not."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.judging.agreement import Agreement, agreement


def distributions(rng: np.random.Generator, tokens: int, vocabulary: int) -> np.ndarray:
    logits = rng.normal(size=(tokens, vocabulary)) * 3
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def divergence(pruned: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """KL(dense || pruned) over everything, [tokens]."""
    return (np.exp(dense) * (dense - pruned)).sum(axis=1)


def top(pruned: np.ndarray, dense: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.argsort(-pruned, axis=1)[:, :k]
    return np.take_along_axis(pruned, ids, axis=1), np.take_along_axis(dense, ids, axis=1)


@given(seed=st.integers(0, 1000), k=st.integers(1, 20))
def test_a_bucket_for_the_rest_never_adds_to_the_divergence(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    pruned, dense = distributions(rng, 7, 20), distributions(rng, 7, 20)
    found = agreement(*top(pruned, dense, k), np.ones(7, bool))
    whole = divergence(pruned, dense).sum()
    assert 0 <= found.kl_nats <= whole + 1e-6
    if k == 20:
        assert found.kl_nats == pytest.approx(whole, abs=1e-5)


def test_the_same_network_agrees_entirely() -> None:
    pruned = distributions(np.random.default_rng(0), 5, 10)[:, :4]
    found = agreement(pruned, pruned, np.ones(5, bool))
    assert found == Agreement(answers=1, tokens=5, agreements=5, kl_nats=0.0, worst_tokens=1)


def test_the_direction_is_from_dense_to_pruned() -> None:
    dense, pruned = np.log([[0.9, 0.1]]), np.log([[0.5, 0.5]])
    found = agreement(pruned, dense, np.zeros(1, bool))
    assert found.kl_nats == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert found.agreements == 0


def test_the_worst_fifth_is_counted_by_answer_and_sums_add_up() -> None:
    rng = np.random.default_rng(1)
    pruned, dense = distributions(rng, 11, 6), distributions(rng, 11, 6)
    by_token = sorted(divergence(pruned, dense))
    found = agreement(pruned, dense, np.arange(11) < 4)
    assert (found.tokens, found.agreements, found.worst_tokens) == (11, 4, 3)  # a fifth, rounded up
    assert found.worst_kl_nats == pytest.approx(sum(by_token[-3:]), abs=1e-5)
    assert found + Agreement() == found
    assert (found + found).worst_kl_nats == 2 * found.worst_kl_nats
    assert (found + found).answers == 2


def test_what_was_not_recorded_counts_as_one_outcome() -> None:
    found = agreement(np.log([[0.9]]), np.log([[0.5]]), np.ones(1, bool))
    assert found.kl_nats == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1))
