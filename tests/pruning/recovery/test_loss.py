"""The loss is what its definition says, and so is its gradient, however the rows are split."""

import pytest
import torch
from torch.nn import functional as F

from pruning.recovery import loss
from pruning.recovery.loss import LossSums, TopTokens, losses, token_losses

TOKENS, VOCABULARY, HIDDEN = 9, 40, 6


def random_logits(seed: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(TOKENS, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def whole_divergence(dense: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    theirs = dense.log_softmax(-1)
    return (theirs.exp() * (theirs - ours.log_softmax(-1))).sum(-1)


@pytest.mark.parametrize("k", [1, 5, VOCABULARY - 1])
def test_the_divergence_is_over_the_likeliest_and_all_others_as_one(k: int) -> None:
    dense, ours = random_logits(0), random_logits(1)
    _, found = token_losses(ours, torch.zeros(TOKENS, dtype=torch.int64), TopTokens.of(dense, k))
    for token in range(TOKENS):
        p, q = dense[token].softmax(-1), ours[token].softmax(-1)
        top = p.argsort(descending=True)[:k]
        parts = [(p[i], q[i]) for i in top] + [(1 - p[top].sum(), 1 - q[top].sum())]
        expected = sum(float(a * (a / b).log()) for a, b in parts)
        assert float(found[token]) == pytest.approx(expected, abs=1e-5)
    assert bool((found <= whole_divergence(dense, ours) + 1e-5).all())
    if k == VOCABULARY - 1:
        torch.testing.assert_close(found, whole_divergence(dense, ours))


def test_a_model_does_not_diverge_from_itself() -> None:
    """Nor where it is so sure that nothing is left for other tokens."""
    for scale in (1.0, 30.0, 300.0):
        logits = random_logits(2, scale)
        _, found = token_losses(logits, torch.zeros(TOKENS, dtype=torch.int64), TopTokens.of(logits, 4))
        assert float(found.abs().max()) < 1e-6


@pytest.mark.parametrize("rows", [4, 100])
def test_the_gradient_is_that_of_the_whole_loss(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "LOGIT_ROWS", rows)
    generator = torch.Generator().manual_seed(3)
    head = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator, requires_grad=True)
    labels = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    dense = TopTokens.of(random_logits(4), 5)

    cross_entropy, divergence = token_losses(hidden @ head.T, labels, dense)
    (expected,) = torch.autograd.grad((0.3 * cross_entropy + divergence).sum() / 7, hidden)
    found = losses(lambda x: x @ head.T, hidden, labels, dense, ce_weight=0.3, gradient_scale=1 / 7)
    torch.testing.assert_close(hidden.grad, expected)
    assert found.tokens == TOKENS
    assert found.mean_divergence == pytest.approx(float(divergence.detach().mean()), rel=1e-5)
    assert found.mean_cross_entropy == pytest.approx(
        float(F.cross_entropy(hidden.detach() @ head.T, labels)), rel=1e-5
    )


def test_measuring_leaves_no_gradient() -> None:
    hidden = torch.randn(TOKENS, VOCABULARY, requires_grad=True)
    labels = torch.zeros(TOKENS, dtype=torch.int64)
    losses(lambda x: x, hidden, labels, TopTokens.of(random_logits(0), 5), ce_weight=1.0)
    assert hidden.grad is None
    assert LossSums(2, 3.0, 4.0) + LossSums(1, 1.0, 1.0) == LossSums(3, 4.0, 5.0)
