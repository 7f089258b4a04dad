"""What a figure was measured on."""

import time
from typing import Any

import psutil

from eval import provenance as measured


def provenance() -> dict[str, Any]:
    """Machine, commit and versions, as JSON."""
    found = measured.provenance()
    return {
        "machine": {
            "cpu": found.cpu,
            "cores": found.cores,
            "memory_bytes": found.memory_bytes,
            "system": found.system,
        },
        "commit": found.commit or "unknown",
        "versions": found.versions,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def num_cores() -> int:
    """Cores of the machine."""
    cores = psutil.cpu_count()
    assert cores is not None
    return cores
