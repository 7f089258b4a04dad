"""A step on a CUDA device: Triton kernels between the matrix products, and whole steps kept as graphs."""

import importlib.util
from functools import cache

import torch

from server.engine.errors import KernelsUnavailableError


@cache
def check_triton(device: str) -> None:
    """Computes something small, once per device.

    Raises:
        KernelsUnavailableError: Triton is not installed, or cannot compile or run there; it needs a C
            compiler and Python's headers.
    """
    if importlib.util.find_spec("triton") is None:
        raise KernelsUnavailableError("triton is not installed")
    try:
        with torch.cuda.device(device):
            from server.engine.kernels.cuda.elementwise import add_and_norm

            ones = torch.ones(1, 16, device=device)
            add_and_norm(ones, ones, ones[0], 1e-6)
            torch.cuda.synchronize()
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise KernelsUnavailableError(f"triton does not work here: {lines[0]}") from error
