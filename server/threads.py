"""How many threads compute on the CPU."""

import logging
import os

import torch

from server.cgroups import cpu_quota

logger = logging.getLogger(__name__)


def set_threads(wanted: int | None) -> None:
    """So many; None: torch's default, which OMP_NUM_THREADS sets, and no more than a container's quota.

    A quota is rounded down: a team of which one thread is stopped stands still as a whole.
    """
    if wanted is not None:
        torch.set_num_threads(wanted)
        return
    quota, threads = cpu_quota(), torch.get_num_threads()
    if quota is not None and quota < threads and "OMP_NUM_THREADS" not in os.environ:
        allowed = max(1, int(quota))
        torch.set_num_threads(allowed)
        logger.info("threads: %d, for a quota of %.4g cores (%d are in sight)", allowed, quota, threads)
