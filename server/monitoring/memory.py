"""How much memory the serving process and its device hold."""

from dataclasses import dataclass

import psutil
import torch

from server.cgroups import memory_bounds


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
    """As it stands now. Raises RuntimeError where CUDA is broken."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return DeviceMemory(process_bytes(device), total - free, total)
    memory = psutil.virtual_memory()
    bounds = [(memory.total - memory.available, memory.total), *memory_bounds()]
    used, total = min(bounds, key=lambda bound: bound[1] - bound[0])
    return DeviceMemory(process_bytes(device), used, total)


def process_bytes(device: torch.device) -> int:
    """`DeviceMemory.process` alone, which asks neither the kernel's nor the driver's tables."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return int(psutil.Process().memory_info().rss)
