"""A container's limit is what there is, wherever above the process it was set."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from server import cgroups
from server.engine.errors import EngineConfigError
from server.loading import sizes
from server.monitoring.memory import device_memory
from tests.server.engine.support import SCHEDULING

GIB = 2**30


def group(path: Path, limit: str, used: int, idle: int = 0) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "memory.max").write_text(f"{limit}\n")
    (path / "memory.current").write_text(f"{used}\n")
    (path / "memory.stat").write_text(f"anon 1\ninactive_file {idle}\nactive_file 0\n")


def test_the_tightest_of_the_groups_around_it_counts(cgroup_root: Path) -> None:
    cpu = torch.device("cpu")
    host = device_memory(cpu)
    group(cgroup_root / "pods" / "mine", "max", GIB)
    assert device_memory(cpu).total == host.total
    group(cgroup_root / "pods", str(GIB), GIB // 2, idle=GIB // 4)
    found = device_memory(cpu)
    assert (found.used, found.total) == (GIB // 4, GIB)
    group(cgroup_root / "pods" / "mine", str(GIB // 2), GIB // 8)
    found = device_memory(cpu)
    assert (found.used, found.total) == (GIB // 8, GIB // 2)


def test_without_groups_it_is_the_host(cgroup_root: Path) -> None:
    assert device_memory(torch.device("cpu")).total > GIB
    cgroups.PROC_CGROUP.unlink()
    assert device_memory(torch.device("cpu")).total > GIB


def test_a_cache_that_there_is_no_room_for_is_refused(cgroup_root: Path) -> None:
    """At the start, and not by the kernel when it has filled."""
    group(cgroup_root / "pods" / "mine", str(GIB), GIB // 2)
    config = replace(SCHEDULING, kv_cache_bytes=1_000)
    sizes._check_room(config)
    group(cgroup_root / "pods" / "mine", str(GIB), GIB - 999)
    with pytest.raises(EngineConfigError, match=r"beside the weights 0\.00 GiB are free: lower --kv-"):
        sizes._check_room(config)
