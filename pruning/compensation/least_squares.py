"""Low-rank least squares from second moments: predicts one vector from another as B (A h). Pure tensors.

Knows neither models nor files. h, the predictor, is [tokens, in]; r, what is to be predicted, [tokens, out].
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.delta import LowRank


class SecondMoments:
    """Weighted sums of h hᵀ, r hᵀ and ‖r‖² over tokens, in float32.

    Rows are scaled by the root of their weight first, and left in the dtype they come in. So the sum of h hᵀ
    is that of real vectors, without negative eigenvalues; and products of two halves of a float32, as
    bfloat16 is, are exact on units that multiply nothing else, several times as fast.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:
        self.inputs = torch.zeros(inputs, inputs, device=device)
        self.cross = torch.zeros(outputs, inputs, device=device)
        self.squares = 0.0

    def add(self, h: Tensor, r: Tensor, weights: Tensor) -> None:
        """`weights`: float32 [tokens], of each token's squared error."""
        root = weights.sqrt()[:, None]
        scaled_h, scaled_r = ((root * rows).to(rows.dtype).float() for rows in (h, r))
        with _products_of(h.dtype):
            self.inputs.addmm_(scaled_h.T, scaled_h)
            self.cross.addmm_(scaled_r.T, scaled_h)
        self.squares += float(scaled_r.square().sum(dtype=torch.float64))

    @property
    def are_finite(self) -> bool:
        """Whether no number overflowed on the way, or was none."""
        return math.isfinite(self.squares + float(self.inputs.sum() + self.cross.sum()))

    def merge(self, other: "SecondMoments") -> None:
        """Adds the sums of `other`."""
        self.inputs += other.inputs
        self.cross += other.cross
        self.squares += other.squares

    def error(self, low_rank: LowRank) -> float:
        """The weighted sum of ‖r - B A h‖²."""
        a, b = low_rank.a.float(), low_rank.b.float()
        explained = 2 * ((b.T @ self.cross) * a).sum(dtype=torch.float64)
        size = ((b.T @ b) * (a @ self.inputs @ a.T)).sum(dtype=torch.float64)
        return self.squares - float(explained - size)


@contextmanager
def _products_of(dtype: torch.dtype) -> Iterator[None]:
    """Multiplies float32 matrices that hold numbers of `dtype` no more precisely than these are."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if dtype == torch.bfloat16 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def working_bytes(inputs: int, outputs: int) -> int:
    """Memory that two sets of moments and a fit take together."""
    moments = 4 * inputs * (inputs + outputs)
    # In float64: the system and its factor, or the factor and a copy; r hᵀ and D, each twice; and of
    # [out, out] what is decomposed, its half, the eigenvectors and their workspace.
    return 2 * moments + 8 * (2 * inputs**2 + 4 * inputs * outputs + 6 * outputs**2)


def low_rank_ridge(moments: SecondMoments, ridge: float, rank: int) -> LowRank:
    """The B A of at most `rank` that minimises the sum of ‖r - B A h‖² plus λ ‖B A‖², exactly.

    Reduced-rank ridge regression (Mukherjee and Zhu 2011, doi:10.1002/sam.10138). With S = Σ h hᵀ + λ I and
    the full solution D = (Σ r hᵀ) S⁻¹, the sum is that of D plus ‖(B A - D) S^½‖², so the best B A is the
    truncated singular value decomposition of D S^½, times S^-½: D projected onto the leading eigenvectors of
    D S Dᵀ, which is D (Σ r hᵀ)ᵀ. In float64, by Cholesky and a full eigendecomposition of [out, out].

    Args:
        ridge: λ in units of the mean of the diagonal of Σ h hᵀ.
    """
    system = moments.inputs.double()  # [in, in]
    system.diagonal().add_(ridge * float(system.diagonal().mean()))
    cross = moments.cross.double()
    factor = torch.linalg.cholesky(system)
    del system  # the solution copies its factor
    full = torch.cholesky_solve(cross.T, factor).T  # [out, in]
    explained = full @ cross.T  # [out, out], symmetric but for rounding
    leading = torch.linalg.eigh((explained + explained.T) / 2).eigenvectors[:, -rank:]
    return LowRank((leading.T @ full).float(), leading.float().contiguous())


@dataclass(frozen=True)
class Choice:
    """The ridge that served other data best.

    Attributes:
        ridge: None where every one made things worse there, so that nothing should be added.
        unexplained: the share of ‖r‖² that is left on that data; 1 for nothing explained.
    """

    ridge: float | None
    unexplained: float


def choose_ridge(fitted: SecondMoments, judged: SecondMoments, ridges: Sequence[float], rank: int) -> Choice:
    """Fits on one set of data, and judges by another.

    Args:
        ridges: to try, the largest first, until one does worse than the one before.
    """
    best = Choice(None, 1.0)
    if judged.squares == 0:
        return best
    for ridge in ridges:
        unexplained = judged.error(low_rank_ridge(fitted, ridge, rank)) / judged.squares
        if unexplained >= best.unexplained:
            break
        best = Choice(ridge, unexplained)
    return best
