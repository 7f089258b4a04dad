"""What the control groups around this process allow it: a container's limits. Version 2, on Linux."""

from collections.abc import Iterator
from pathlib import Path

FILE_PAGES = ("inactive_file ", "active_file ")
PROC_CGROUP, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def memory_bounds() -> list[tuple[int, int]]:
    """Bytes used and allowed in each group that has a limit.

    What the kernel takes back before it ends a process, the pages of files, is not used.
    """
    found = []
    for group in _groups():
        try:
            limit = (group / "memory.max").read_text().strip()
            used = int((group / "memory.current").read_text())
            lines = (group / "memory.stat").read_text().splitlines()
        except (OSError, ValueError):
            continue
        if limit.isdecimal():
            idle = sum(int(line.split()[1]) for line in lines if line.startswith(FILE_PAGES))
            found.append((max(0, used - idle), int(limit)))
    return found


def cpu_quota() -> float | None:
    """How many cores' time the tightest group gives, None for as much as there is.

    It bounds time, not cores: all of the host's stay in sight, and whoever starts a thread on each is stopped
    for the rest of every period, with a team's barrier waiting for those that were stopped.
    """
    quotas = []
    for group in _groups():
        try:
            quota, period = (group / "cpu.max").read_text().split()
            quotas.append(int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):  # no such group, or "max"
            continue
    return min(quotas, default=None)


def _groups() -> Iterator[Path]:
    """This process's own and those around it, innermost first."""
    try:
        names = [line[3:] for line in PROC_CGROUP.read_text().splitlines() if line.startswith("0::")]
    except OSError:
        return
    for name in names:
        group = CGROUPS / name.lstrip("/")
        for place in (group, *group.parents):
            if place == CGROUPS.parent:
                break
            yield place
