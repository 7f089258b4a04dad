"""Zeros straight from the system: they take memory only where something is written, and lie in huge pages.

Not torch's or numpy's, which ask the process's allocator: one that was preloaded (tcmalloc, say) writes its
zeros one by one, 1 GiB of KV at every start.
"""

import contextlib
import mmap

import torch

HUGE_PAGE = 2 << 20  # bytes


def system_zeros(count: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """[count] zeros, from the beginning of a huge page on."""
    num_bytes = -(-count * dtype.itemsize // HUGE_PAGE) * HUGE_PAGE
    mapped = mmap.mmap(-1, num_bytes + HUGE_PAGE)
    with contextlib.suppress(OSError):  # a kernel without huge pages refuses; nothing is lost then
        mapped.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(mapped, dtype=torch.uint8)
    start = -memory.data_ptr() % HUGE_PAGE
    return memory[start : start + num_bytes].view(dtype)[:count]
