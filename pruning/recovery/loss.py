"""The loss of recovery: cross-entropy on the dense model's answers, and the divergence from its distribution.

Of the dense distribution only the likeliest tokens are known, and what all others have together. The
divergence is that of the distributions over those tokens and "any other": exact for them, and never more
than the divergence over all tokens. Knows tensors, not networks or files.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LOGIT_ROWS = 128  # positions whose logits are held at once, a few times over: vocabularies are large


@dataclass(frozen=True, eq=False)
class TopTokens:
    """What is known of the dense model's next-token distributions.

    Attributes:
        ids: int32 [tokens, k], the likeliest.
        log_probs: float32 [tokens, k + 1], theirs, and of all others together.
    """

    ids: Tensor
    log_probs: Tensor

    @classmethod
    def of(cls, logits: Tensor, k: int) -> "TopTokens":
        """From all logits, [tokens, vocabulary], more than k."""
        ids = logits.topk(k, dim=-1).indices
        return cls(ids.int(), log_probs_with_rest(logits, ids))


@dataclass(frozen=True)
class LossSums:
    """Summed over answer tokens, nats."""

    tokens: int = 0
    cross_entropy: float = 0.0
    divergence: float = 0.0

    def __add__(self, other: "LossSums") -> "LossSums":
        return LossSums(
            self.tokens + other.tokens,
            self.cross_entropy + other.cross_entropy,
            self.divergence + other.divergence,
        )

    @property
    def mean_cross_entropy(self) -> float:
        return self.cross_entropy / self.tokens

    @property
    def mean_divergence(self) -> float:
        return self.divergence / self.tokens


def log_probs_with_rest(logits: Tensor, ids: Tensor) -> Tensor:
    """Of the tokens `ids` [tokens, k], and of all others together; float32 [tokens, k + 1]."""
    logits, ids = logits.float(), ids.long()
    whole = logits.logsumexp(dim=-1, keepdim=True)
    rest = logits.scatter(1, ids, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([logits.gather(1, ids), rest], dim=1) - whole


def token_losses(logits: Tensor, labels: Tensor, dense: TopTokens) -> tuple[Tensor, Tensor]:
    """Cross-entropy of `labels` [tokens] and divergence from `dense`, nats; float32 [tokens] each."""
    ours = log_probs_with_rest(logits, dense.ids)
    divergence = (dense.log_probs.exp() * (dense.log_probs - ours)).sum(dim=-1)
    return F.cross_entropy(logits.float(), labels, reduction="none"), divergence


def losses(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    labels: Tensor,
    dense: TopTokens,
    *,
    ce_weight: float,
    gradient_scale: float | None = None,
) -> LossSums:
    """Over `hidden` [tokens, hidden], a few logits at a time.

    Args:
        ce_weight: of the cross-entropy in the loss; the divergence counts once.
        gradient_scale: the gradient of the summed loss, times this, is propagated back from `hidden`; None:
            nothing is.
    """
    leaf = hidden.detach().requires_grad_(gradient_scale is not None)
    sums = LossSums()
    for rows, wanted, ids, log_probs in zip(
        *(torch.split(part, LOGIT_ROWS) for part in (leaf, labels, dense.ids, dense.log_probs)), strict=True
    ):
        with torch.set_grad_enabled(gradient_scale is not None):
            cross_entropy, divergence = (
                values.sum() for values in token_losses(head(rows), wanted, TopTokens(ids, log_probs))
            )
            if gradient_scale is not None:
                loss = gradient_scale * (ce_weight * cross_entropy + divergence)
                loss.backward()  # type: ignore[no-untyped-call]
        sums += LossSums(len(rows), cross_entropy.detach().item(), divergence.detach().item())
    if gradient_scale is not None:
        hidden.backward(leaf.grad)  # type: ignore[no-untyped-call]
    return sums
