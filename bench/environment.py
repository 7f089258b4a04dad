"""What a figure was measured on.

`python -m bench.environment` prints the directory of the results of machines like this one.
"""

import time
from pathlib import Path
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


def results_directory() -> Path:
    """By what the CPU computes with, as `/version` says it: "amx-bf16", "avx512-bf16" or "torch"."""
    from server.engine.kernels import describe, without_reason  # brings torch; provenance needs none

    return Path("bench/results") / without_reason(describe())


if __name__ == "__main__":
    print(results_directory())
