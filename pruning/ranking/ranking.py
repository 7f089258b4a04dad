"""Turns one score per neuron into an order of the neurons: within each layer, and over all of them.

Pure: knows nothing of models, files or sparsities.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from pruning.errors import ProfileError

Order = Literal["forward", "reverse"]


@dataclass(frozen=True, eq=False)
class Ranking:
    """An order of all MLP neurons, the most useful ones first. Compare rankings by `digest`.

    Attributes:
        score: name of the score that it comes from.
        order: "reverse" puts the least useful ones first, the control experiment.
        profile_digest: names the profile that the score was computed from.
        permutation: int64 [layers, neurons]; [l, j] is the original index of the j-th neuron of layer l.
        global_position: int64 [layers, neurons]; [l, j] is that neuron's place in the one order of all
            neurons, 0 for the one removed last. Increases strictly along a layer, so that the first k of the
            global order are a prefix of every layer.
    """

    score: str
    order: Order
    profile_digest: str
    permutation: Tensor
    global_position: Tensor

    @cached_property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of everything above."""
        digest = hashlib.sha256(f"{self.score}\n{self.order}\n{self.profile_digest}\n".encode())
        for order in (self.permutation, self.global_position):
            digest.update(f"{tuple(order.shape)}\n".encode())
            digest.update(order.numpy().tobytes())
        return digest.hexdigest()

    def reversed(self) -> "Ranking":
        """The exact mirror image: what was removed last is removed first."""
        return replace(
            self,
            order="forward" if self.order == "reverse" else "reverse",
            permutation=self.permutation.flip(1),
            global_position=self.permutation.numel() - 1 - self.global_position.flip(1),
        )


def unranked(num_layers: int, num_neurons: int) -> Ranking:
    """The checkpoint's own order, for a model that keeps all its neurons: no profile is needed."""
    return rank(torch.zeros(num_layers, num_neurons), score="none", profile_digest="none")


def rank(
    scores: Tensor,
    *,
    score: str,
    profile_digest: str,
    order: Order = "forward",
    protected: Tensor | None = None,
) -> Ranking:
    """Sorts neurons by score, high to low; equal ones by layer, then by index.

    Args:
        scores: [layers, neurons], higher is more useful.
        order: "reverse" gives the exact mirror image of "forward", ties included.
        protected: bool [layers, neurons], those that come before all others, whatever their score.

    Raises:
        ProfileError: a score is NaN or infinite.
    """
    if not bool(torch.isfinite(scores).all()):
        layer = int((~torch.isfinite(scores)).any(dim=1).nonzero()[0])
        raise ProfileError(
            f"the score {score!r} is not finite for some neurons of layer {layer}; "
            f"rebuild the profile with dtype float32"
        )
    flat = scores.detach().cpu().flatten()
    by_rank = torch.sort(flat, descending=True, stable=True).indices  # [layers * neurons], places in `flat`
    if protected is not None:
        by_rank = by_rank[(~protected.flatten()[by_rank]).sort(stable=True).indices]
    if order == "reverse":
        by_rank = by_rank.flip(0)
    position = torch.empty_like(by_rank)
    position[by_rank] = torch.arange(by_rank.numel())
    return from_positions(
        position.view(scores.shape), score=score, profile_digest=profile_digest, order=order
    )


def from_positions(position: Tensor, *, score: str, profile_digest: str, order: Order = "forward") -> Ranking:
    """The ranking in which neuron j of layer l has the place `position[l, j]` of the one order of all.

    Args:
        position: int64 [layers, neurons], every number from 0 on once.
    """
    global_position, permutation = position.sort(dim=1)
    return Ranking(
        score=score,
        order=order,
        profile_digest=profile_digest,
        permutation=permutation,
        global_position=global_position,
    )
