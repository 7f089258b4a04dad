"""What a figure was measured on."""

import contextlib
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil


def provenance() -> dict[str, Any]:
    """Machine, commit and versions, as JSON."""
    cpu = platform.processor()
    with contextlib.suppress(OSError):  # only Linux tells
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), cpu)
    return {
        "machine": {
            "cpu": cpu,
            "cores": num_cores(),
            "memory_bytes": psutil.virtual_memory().total,
            "system": platform.platform(),
        },
        "commit": _git("describe", "--always", "--dirty", "--abbrev=12"),
        "versions": {
            "python": platform.python_version(),
            **{n: version(n) for n in ("torch", "transformers")},
        },
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def num_cores() -> int:
    """Cores of the machine."""
    cores = psutil.cpu_count()
    assert cores is not None
    return cores


def _git(*arguments: str) -> str:
    ran = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return ran.stdout.strip() or "unknown"
