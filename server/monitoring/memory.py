"""How much memory the serving process and its device hold."""

from dataclasses import dataclass

import psutil
import torch


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes. The host's where the model runs on the CPU.

    Attributes:
        process: held by this process: its resident set, or what torch holds on CUDA.
        used: held by all processes.
        total: of the device.
    """

    process: int
    used: int
    total: int


def device_memory(device: torch.device) -> DeviceMemory:
    """As it stands now."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return DeviceMemory(process_bytes(device), torch.cuda.device_memory_used(device), total)
    memory = psutil.virtual_memory()
    return DeviceMemory(process_bytes(device), memory.total - memory.available, memory.total)


def process_bytes(device: torch.device) -> int:
    """`DeviceMemory.process` alone, which asks neither the kernel's nor NVML's tables."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return int(psutil.Process().memory_info().rss)
