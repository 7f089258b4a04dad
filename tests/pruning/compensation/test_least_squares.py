"""Second moments against the data they are of; low-rank ridge against dense solves and decompositions."""

from itertools import accumulate

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from pruning.compensation.least_squares import (
    Choice,
    SecondMoments,
    choose_ridge,
    low_rank_ridge,
    working_bytes,
)
from pruning.delta import LowRank

TOKENS, INPUTS, OUTPUTS = 400, 12, 7


def data(seed: int = 0, noise: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """h with correlated entries of unlike sizes, r that depends on it, weights."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(INPUTS, INPUTS, generator=torch.Generator().manual_seed(9))
    truth = torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(10))
    h = torch.randn(TOKENS, INPUTS, generator=generator) @ mixing * torch.logspace(-1, 1, INPUTS)
    r = h @ truth.T + noise * torch.randn(TOKENS, OUTPUTS, generator=generator)
    return h, r, torch.rand(TOKENS, generator=generator) + 0.1


def moments(*of: Tensor) -> SecondMoments:
    made = SecondMoments(INPUTS, OUTPUTS, torch.device("cpu"))
    made.add(*(of or data()))
    return made


def penalty(ridge: float) -> float:
    return ridge * float(moments().inputs.double().diagonal().mean())


def objective(matrix: Tensor, ridge: float) -> float:
    """The weighted sum of squares and the penalty, from the data itself."""
    h, r, w = (part.double() for part in data())
    residual = (r - h @ matrix.double().T).square().sum(dim=1)
    return float((w * residual).sum() + penalty(ridge) * matrix.double().square().sum())


def test_moments_add_up() -> None:
    h, r, w = data()
    parts = SecondMoments(INPUTS, OUTPUTS, torch.device("cpu"))
    for piece in zip(h.split(90), r.split(90), w.split(90), strict=True):
        part = SecondMoments(INPUTS, OUTPUTS, torch.device("cpu"))
        part.add(*piece)
        parts.merge(part)
    weighted = h * w[:, None]
    torch.testing.assert_close(parts.inputs, weighted.T @ h, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(parts.cross, r.T @ weighted, rtol=1e-4, atol=1e-2)
    assert parts.squares == pytest.approx(float((r.square() * w[:, None]).sum()), rel=1e-5)


def test_halves_of_a_float32_are_multiplied_exactly() -> None:
    """In bfloat16 the rows are rounded and nothing else is; the setting of torch stays as it was."""
    h, r, w = data()
    before = torch.get_float32_matmul_precision()
    found = moments(h.bfloat16(), r.bfloat16(), w)
    assert torch.get_float32_matmul_precision() == before
    rounded_h, rounded_r = ((w.sqrt()[:, None] * rows.bfloat16()).bfloat16().double() for rows in (h, r))
    torch.testing.assert_close(found.inputs.double(), rounded_h.T @ rounded_h, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(found.cross.double(), rounded_r.T @ rounded_h, rtol=1e-5, atol=1e-3)
    assert float(torch.linalg.eigvalsh(found.inputs.double())[0]) > -1e-2


def test_the_error_is_that_of_the_data() -> None:
    generator = torch.Generator().manual_seed(3)
    low_rank = LowRank(
        torch.randn(3, INPUTS, generator=generator), torch.randn(OUTPUTS, 3, generator=generator)
    )
    assert moments().error(low_rank) == pytest.approx(objective(low_rank.product(), 0), rel=1e-4)


@pytest.mark.parametrize("ridge", [1e-4, 0.1, 3.0])
def test_full_rank_is_the_dense_solve(ridge: float) -> None:
    """Least squares over the data itself, with λ as further rows."""
    h, r, w = (part.double() for part in data())
    rows = torch.cat([h * w.sqrt()[:, None], penalty(ridge) ** 0.5 * torch.eye(INPUTS, dtype=torch.float64)])
    wanted = torch.cat([r * w.sqrt()[:, None], torch.zeros(INPUTS, OUTPUTS, dtype=torch.float64)])
    solved = torch.linalg.lstsq(rows, wanted).solution.T
    found = low_rank_ridge(moments(), ridge, OUTPUTS).product().double()
    torch.testing.assert_close(found, solved, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_truncation_loses_the_least_that_can_be_lost(rank: int) -> None:
    """The objective rises by the squared singular values left out, in the weighted norm (Eckart, Young)."""
    ridge = 0.03
    full = low_rank_ridge(moments(), ridge, OUTPUTS).product().double()
    system = moments().inputs.double() + penalty(ridge) * torch.eye(INPUTS, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(system)
    root = vectors * values.sqrt() @ vectors.T
    left_out = torch.linalg.svdvals(full @ root)[rank:].square().sum()
    found = low_rank_ridge(moments(), ridge, rank)
    assert found.rank == rank
    assert objective(found.product(), ridge) == pytest.approx(
        objective(full, ridge) + float(left_out), rel=1e-4
    )
    # The truncation of the plain matrix, which knows nothing of the activations, is worse.
    u, s, v = torch.linalg.svd(full, full_matrices=False)
    assert objective(u[:, :rank] * s[:rank] @ v[:rank], ridge) > 1.01 * objective(found.product(), ridge)


@pytest.mark.parametrize(("inputs", "outputs"), [(600, 60), (300, 300), (60, 300)])
def test_a_fit_takes_no_more_memory_than_is_told(inputs: int, outputs: int) -> None:
    made = SecondMoments(inputs, outputs, torch.device("cpu"))
    rows = torch.randn(2 * inputs, inputs + outputs, generator=torch.Generator().manual_seed(0))
    made.add(rows[:, :inputs], rows[:, inputs:], torch.ones(2 * inputs))
    with profile(profile_memory=True, activities=[ProfilerActivity.CPU]) as seen:
        low_rank_ridge(made, 0.1, 4)
    events = seen.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    peak = max(accumulate(size for _, size in changes))
    beside = working_bytes(inputs, outputs) - 2 * 4 * inputs * (inputs + outputs)  # the moments are there
    assert peak <= beside < 2 * peak


def test_sums_that_overflowed_are_told() -> None:
    h, r, w = data()
    assert moments().are_finite
    assert not moments((1e3 * h).half(), r.half(), 1e6 * w).are_finite


def test_the_ridge_is_the_best_on_other_data() -> None:
    few = tuple(part[:10] for part in data(1, noise=20))
    ridges = (1.0, 1e-1, 1e-3, 1e-6)
    choice = choose_ridge(moments(*few), moments(), ridges, OUTPUTS)
    left = {ridge: moments().error(low_rank_ridge(moments(*few), ridge, OUTPUTS)) for ridge in ridges}
    assert choice.ridge == min(left, key=lambda ridge: left[ridge]) > ridges[-1]
    assert choice.unexplained == pytest.approx(min(left.values()) / moments().squares)


def test_where_nothing_helps_nothing_is_chosen() -> None:
    h, r, w = data()
    assert choose_ridge(moments(h, -r, w), moments(), (1.0, 1e-3), 3) == Choice(None, 1.0)
    nothing = moments(h, 0 * r, w)
    assert choose_ridge(nothing, nothing, (1e-3,), 3) == Choice(None, 1.0)
