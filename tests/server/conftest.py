"""For tests of the server's modules."""

from pathlib import Path

import pytest

from server import cgroups


@pytest.fixture
def cgroup_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where control groups are looked for; this process is in pods/mine, and no group has a limit yet."""
    proc, root = tmp_path / "cgroup", tmp_path / "fs"
    proc.write_text("1:name=systemd:/other\n0::/pods/mine\n")
    monkeypatch.setattr(cgroups, "PROC_CGROUP", proc)
    monkeypatch.setattr(cgroups, "CGROUPS", root)
    (root / "pods" / "mine").mkdir(parents=True)
    return root
