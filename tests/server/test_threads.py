"""As many threads as asked for, else as a container's share of the processor feeds."""

from pathlib import Path

import pytest
import torch

from server import cgroups
from server.threads import set_threads
from tests.processes import printed_by


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What torch was told last, 8 at first; the process itself keeps its own."""
    told = [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: told[-1])
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return told


def quota(group: Path, text: str) -> None:
    (group / "cpu.max").write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("400000 100000", 4),
        ("150000 100000", 1),  # of two threads one would be stopped half of the time
        ("50000 100000", 1),
        ("1600000 100000", 8),
        ("max 100000", 8),
        ("nonsense", 8),
        ("100000 0", 8),
    ],
)
def test_no_more_threads_than_the_quota_feeds(
    cgroup_root: Path, threads: list[int], text: str, expected: int
) -> None:
    quota(cgroup_root / "pods" / "mine", text)
    set_threads(None)
    assert torch.get_num_threads() == expected


def test_the_tightest_of_the_groups_around_it_counts(cgroup_root: Path, threads: list[int]) -> None:
    quota(cgroup_root / "pods" / "mine", "600000 100000")
    quota(cgroup_root / "pods", "300000 100000")
    set_threads(None)
    assert torch.get_num_threads() == 3


def test_what_was_asked_for_goes_before_the_quota(
    cgroup_root: Path, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    quota(cgroup_root / "pods" / "mine", "200000 100000")
    set_threads(6)
    assert torch.get_num_threads() == 6
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    set_threads(None)
    assert torch.get_num_threads() == 6


def test_without_groups_it_is_torchs(cgroup_root: Path, threads: list[int]) -> None:
    cgroups.PROC_CGROUP.unlink()
    set_threads(None)
    assert threads == [8]


def test_every_command_starts_with_them(tmp_path: Path) -> None:
    """In a process of its own: one that computes keeps its threads."""
    (tmp_path / "cgroup").write_text("0::/\n")
    quota(tmp_path, "100000 100000")
    script = (
        "import os, pathlib, sys, torch\nfrom server import __main__, cgroups\n"
        f"cgroups.PROC_CGROUP = pathlib.Path({str(tmp_path / 'cgroup')!r})\n"
        f"cgroups.CGROUPS = pathlib.Path({str(tmp_path)!r})\n"
        "os.environ.pop('OMP_NUM_THREADS', None)\n"
        "torch.set_num_threads(3)\n"
        "__main__._imported = lambda settings: lambda: f'{torch.get_num_threads()} threads'\n"
        "sys.exit(__main__.main(['profile']))"
    )
    assert printed_by(script) == "1 threads\n"
