"""What the machine can do at most, right now: reading memory and multiplying matrices, as torch does them.

On a shared machine both change from minute to minute, so that they are taken between rounds, in every run.
"""

import time
from collections.abc import Callable
from typing import TypedDict

import torch


class Limits(TypedDict):
    """One reading of both."""

    bytes_per_second: float
    flops_per_second: float


def limits() -> Limits:
    """Both, in about a third of a second. Nothing else may compute meanwhile."""
    return {"bytes_per_second": read_speed(), "flops_per_second": multiply_speed()}


def read_speed() -> float:
    """Bytes a second that all threads together read from memory, best of three: torch's sum of 512 MB."""
    data = torch.ones(128 << 20)
    return data.nbytes / min(_seconds(data.sum) for _ in range(3))


def multiply_speed() -> float:
    """FLOPs a second of torch's largest bfloat16 products, best of three."""
    a, b = torch.randn(2, 2048, 2048, dtype=torch.bfloat16)
    return 2 * 2048**3 / min(_seconds(lambda: a @ b) for _ in range(3))


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
