"""Matrices in 8 bits, and products with them.

A row of a matrix is integers of [-127, 127] and one scale. So is a row of what it multiplies, from the
moment it is multiplied: y = (integers · integers) times both scales. This is the vector-wise quantization
of Dettmers et al. 2022 (arXiv 2208.07339, section 3) without their part for outliers. All linear maps, the
embedding and the head are kept so; norms, biases, deltas and KV stay in the model's dtype.

The scale of an output is that of all its weights, also those of neurons that no variant serves: what a
variant answers does not depend on which others there are.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

_LARGEST = 127
_SMALLEST_PEAK = 1e-30  # rows below are zeros: 127 over less may be infinite


@dataclass(frozen=True)
class QuantizedMatrix:
    """Rows of integers, each worth a scale."""

    values: torch.Tensor  # [rows, columns] int8, of any strides
    scales: torch.Tensor  # [rows] float32

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes


Weight = torch.Tensor | QuantizedMatrix  # [outputs, inputs]


def quantize(matrix: torch.Tensor, peaks: torch.Tensor | None = None) -> QuantizedMatrix:
    """[rows, columns] in any floating point, rounded. What is not a number in a row makes its scale that.

    Args:
        peaks: [rows] the largest magnitudes that the scales are for, where they are not those of `matrix`.
    """
    matrix = matrix.float()
    peaks = matrix.abs().amax(1) if peaks is None else peaks.float()
    inverse = torch.where(peaks < _SMALLEST_PEAK, 0, _LARGEST / peaks)
    integers = (matrix * inverse[:, None]).round().nan_to_num()
    return QuantizedMatrix(integers.to(torch.int8), peaks / _LARGEST)


def linear(x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x Wᵀ + b in the dtype of `x`: [rows, inputs] → [rows, outputs]."""
    if isinstance(weight, torch.Tensor):
        return F.linear(x, weight, bias)
    y = multiply(quantize(x), weight, x.dtype)
    return y if bias is None else y + bias


def multiply(rows: QuantizedMatrix, weight: QuantizedMatrix, dtype: torch.dtype) -> torch.Tensor:
    """x Wᵀ of two quantized matrices, in `dtype`."""
    # Integers below 256 are exact in bfloat16 as well, but their sums leave float16's range.
    computed = torch.float32 if dtype is torch.float16 else dtype
    sums = F.linear(rows.values.to(computed), weight.values.to(computed))
    return (sums.float() * rows.scales[:, None] * weight.scales).to(dtype)


def rows_of(weight: Weight, indices: torch.Tensor) -> torch.Tensor:
    """Rows as numbers, in float32 where they were quantized: [count] → [count, inputs]."""
    if isinstance(weight, torch.Tensor):
        return F.embedding(indices, weight)
    return weight.values[indices] * weight.scales[indices, None]


def of_outputs(weight: Weight, start: int, stop: int) -> Weight:
    """The rows that compute outputs [start, stop)."""
    if isinstance(weight, torch.Tensor):
        return weight[start:stop]
    return QuantizedMatrix(weight.values[start:stop], weight.scales[start:stop])


def of_inputs(weight: Weight, start: int, stop: int) -> Weight:
    """The columns that inputs [start, stop) are multiplied with."""
    if isinstance(weight, torch.Tensor):
        return weight[:, start:stop]
    return QuantizedMatrix(weight.values[:, start:stop], weight.scales)
