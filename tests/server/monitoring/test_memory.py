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


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    proc, root = tmp_path / "cgroup", tmp_path / "fs"
    proc.write_text("1:name=systemd:/other\n0::/pods/mine\n")
    monkeypatch.setattr(cgroups, "PROC_CGROUP", proc)
    monkeypatch.setattr(cgroups, "CGROUPS", root)
    return root


def test_the_tightest_of_the_groups_around_it_counts(root: Path) -> None:
    cpu = torch.device("cpu")
    host = device_memory(cpu)
    group(root / "pods" / "mine", "max", GIB)
    assert device_memory(cpu).total == host.total
    group(root / "pods", str(GIB), GIB // 2, idle=GIB // 4)
    found = device_memory(cpu)
    assert (found.used, found.total) == (GIB // 4, GIB)
    group(root / "pods" / "mine", str(GIB // 2), GIB // 8)
    found = device_memory(cpu)
    assert (found.used, found.total) == (GIB // 8, GIB // 2)


def test_without_groups_it_is_the_host(root: Path) -> None:
    assert device_memory(torch.device("cpu")).total > GIB
    cgroups.PROC_CGROUP.unlink()
    assert device_memory(torch.device("cpu")).total > GIB


def test_a_cache_that_there_is_no_room_for_is_refused(root: Path) -> None:
    """At the start, and not by the kernel when it has filled."""
    group(root / "pods" / "mine", str(GIB), GIB // 2)
    config = replace(SCHEDULING, kv_cache_bytes=1_000)
    sizes._check_room(config)
    group(root / "pods" / "mine", str(GIB), GIB - 999)
    with pytest.raises(EngineConfigError, match=r"beside the weights 0\.00 GiB are free: lower --kv-"):
        sizes._check_room(config)
