"""Where and with what a figure was measured: machine, commit, versions. Goes into every result file."""

import contextlib
import platform
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import psutil

_PACKAGES = ("secateur", "torch", "transformers")


@dataclass(frozen=True)
class Provenance:
    """`commit` is None where the code is not in a git checkout; `measured_at` is ISO 8601 with its offset."""

    cpu: str
    cores: int
    memory_bytes: int
    system: str
    commit: str | None
    versions: dict[str, str]
    measured_at: str


def provenance() -> Provenance:
    """Of here and now."""
    return Provenance(
        cpu=_cpu(),
        cores=psutil.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        system=_system(),
        commit=_commit(),
        versions={"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        measured_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _cpu() -> str:
    with contextlib.suppress(OSError):  # only Linux tells
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.processor()


def _system() -> str:
    """Without what its builder calls it."""
    release = ".".join(platform.release().split(".")[:2])
    return f"{platform.system()} {release}, {platform.machine()}"


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        ran = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False, timeout=10
        )
    except OSError:
        return None
    return ran.stdout.strip() or None
