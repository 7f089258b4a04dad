"""How much memory the serving process and its device hold."""

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

FILE_PAGES = ("inactive_file ", "active_file ")
PROC_CGROUP, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes. Where the model runs on the CPU the host's, or the container's where that has less.

    Attributes:
        process: held by this process: its resident set, or what torch holds on CUDA.
        used: held by all processes.
        total: of the device.
    """

    process: int
    used: int
    total: int

    @property
    def free(self) -> int:
        """What is left for anybody."""
        return self.total - self.used


def device_memory(device: torch.device) -> DeviceMemory:
    """As it stands now."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return DeviceMemory(process_bytes(device), total - free, total)
    memory = psutil.virtual_memory()
    bounds = [(memory.total - memory.available, memory.total), *_cgroups(PROC_CGROUP, CGROUPS)]
    used, total = min(bounds, key=lambda bound: bound[1] - bound[0])
    return DeviceMemory(process_bytes(device), used, total)


def process_bytes(device: torch.device) -> int:
    """`DeviceMemory.process` alone, which asks neither the kernel's nor the driver's tables."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return int(psutil.Process().memory_info().rss)


def _cgroups(proc: Path, root: Path) -> list[tuple[int, int]]:
    """Bytes used and allowed in each control group (version 2) around this process that has a limit.

    What the kernel takes back before it ends a process, the pages of files, is not used.
    """
    try:
        names = [line[3:] for line in proc.read_text().splitlines() if line.startswith("0::")]
    except OSError:
        return []
    found = []
    for name in names:
        group = root / name.lstrip("/")
        for place in (group, *group.parents):
            if place == root.parent:
                break
            try:
                limit = (place / "memory.max").read_text().strip()
                used = int((place / "memory.current").read_text())
                lines = (place / "memory.stat").read_text().splitlines()
            except (OSError, ValueError):
                continue
            if limit.isdecimal():
                idle = sum(int(line.split()[1]) for line in lines if line.startswith(FILE_PAGES))
                found.append((max(0, used - idle), int(limit)))
    return found
