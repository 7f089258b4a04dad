"""Turns a sparsity into the number of neurons that each layer keeps, and back. The only place that rounds.

Pure: knows rankings, not models. Widths nest: a higher sparsity is nowhere wider than a lower one.
"""

from collections.abc import Sequence
from typing import Literal

from pruning.errors import SparsityError
from pruning.ranking.ranking import Ranking

Allocation = Literal["global", "uniform"]

MAX_GRANULARITY = 64
MIN_GRANULARITY = 8
STEPS = 32  # widths to choose from, at least, where the minimum allows it


def granularity(intermediate_size: int) -> int:
    """What widths are multiples of: 64, and smaller powers of two down to 8 for MLPs under 2,048 neurons."""
    step = MAX_GRANULARITY
    while step > MIN_GRANULARITY and step * STEPS > intermediate_size:
        step //= 2
    return step


def widths_at(ranking: Ranking, sparsity: float, allocation: Allocation) -> tuple[int, ...]:
    """Neurons to keep, one number a layer, when the share `sparsity` of all neurons is left out.

    "uniform" keeps the same number everywhere. "global" keeps the first of the one order of all neurons,
    however they spread over the layers; it needs a score that compares across layers.

    Each layer's number goes to the nearest multiple of `granularity`, or the full width if that is nearer
    (ties go up), and is never less than one multiple; `exact_sparsity` tells what came out.

    Raises:
        SparsityError: not 0 <= sparsity < 1.
    """
    if not 0 <= sparsity < 1:
        raise SparsityError(f"the sparsity is {sparsity}; it must be at least 0 and less than 1")
    layers, neurons = ranking.permutation.shape
    if allocation == "uniform":
        return (_rounded(neurons * (1 - sparsity), neurons),) * layers
    kept = round(layers * neurons * (1 - sparsity))
    counts = (ranking.global_position < kept).sum(dim=1).tolist()
    return tuple(_rounded(count, neurons) for count in counts)


def exact_sparsity(widths: Sequence[int], intermediate_size: int) -> float:
    """The share of neurons that `widths` leaves out, all layers together."""
    neurons = len(widths) * intermediate_size
    return (neurons - sum(widths)) / neurons


def _rounded(count: float, neurons: int) -> int:
    step = granularity(neurons)
    below = min(max(int(count) // step * step, step), neurons)
    above = min(below + step, neurons)
    return above if above - count <= count - below else below
