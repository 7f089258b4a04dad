"""Memory that is taken only where it is written."""

import psutil
import pytest
import torch

from server.engine.kernels.memory import HUGE_PAGE, system_zeros


@pytest.mark.parametrize(("count", "dtype"), [(1, torch.uint8), (HUGE_PAGE + 3, torch.bfloat16)])
def test_zeros_begin_with_a_huge_page(count: int, dtype: torch.dtype) -> None:
    memory = system_zeros(count, dtype)
    assert (memory.shape, memory.dtype) == ((count,), dtype)
    assert memory.data_ptr() % HUGE_PAGE == 0
    assert not memory.any()
    memory.fill_(3)  # all of it is there
    assert (memory == 3).all()


def test_only_what_is_written_takes_memory() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    memory = system_zeros(512 << 20, torch.uint8)
    assert process.memory_info().rss - before < 64 << 20
    memory[: 256 << 20].fill_(1)
    assert process.memory_info().rss - before > 192 << 20
    del memory
    assert process.memory_info().rss - before < 64 << 20
