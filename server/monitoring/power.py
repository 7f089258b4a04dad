"""Energy that the machine has used since the process began, in joules, by source: RAPL's and NVML's counters.

Both count all that runs on the hardware, not this process alone. What cannot be read is left out, never
taken for 0. Knows nothing of requests or metrics.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import pynvml
import torch

logger = logging.getLogger(__name__)

POWERCAP = Path("/sys/class/powercap")


class EnergySourceError(Exception):
    """A counter is not there, or may not be read."""


class EnergySource(Protocol):
    """One counter."""

    @property
    def name(self) -> str: ...

    def joules(self) -> float:
        """Since it was opened. Raises EnergySourceError."""
        ...


class RaplZone:
    """A zone of the kernel's powercap tree: a CPU package, or the memory beside one.

    The counter begins anew when it is full, at 100 W after less than an hour: it must be read more often.

    Raises:
        EnergySourceError: it cannot be read; since 2020 kernels let root alone.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self._counter = directory / "energy_uj"
        self._range = _number(directory / "max_energy_range_uj")
        self._last = _number(self._counter)
        self._microjoules = 0

    def joules(self) -> float:
        """Since it was opened. Raises EnergySourceError."""
        now = _number(self._counter)
        self._microjoules += (now - self._last) % self._range
        self._last = now
        return self._microjoules / 1e6


class NvmlDevice:
    """A CUDA device's own counter (Volta and later).

    Raises:
        EnergySourceError: NVML is not there, or the device does not count.
    """

    def __init__(self, device: torch.device) -> None:
        try:
            pynvml.nvmlInit()
            # NVML's numbers know nothing of CUDA_VISIBLE_DEVICES; the UUID is the same on both sides.
            uuid = torch.cuda.get_device_properties(device).uuid
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            self.name = f"nvml:{pynvml.nvmlDeviceGetIndex(self._handle)}"
        except pynvml.NVMLError as error:
            raise EnergySourceError(f"NVML: {error}") from error
        self._first = self._millijoules()

    def joules(self) -> float:
        """Since it was opened. Raises EnergySourceError."""
        return (self._millijoules() - self._first) / 1e3

    def _millijoules(self) -> int:
        try:
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except pynvml.NVMLError as error:
            raise EnergySourceError(f"NVML: {error}") from error


class EnergyMeter:
    """All counters of a machine that can be read; their sum counts nothing twice."""

    def __init__(self, sources: Sequence[EnergySource]) -> None:
        self._sources = sources

    def joules(self) -> dict[str, float]:
        """By source, since they were opened; without those that cannot be read just now."""
        found = {}
        for source in self._sources:
            try:
                found[source.name] = source.joules()
            except EnergySourceError as error:
                logger.warning("%s is left out of the energy metrics for now: %s", source.name, error)
        return found


def open_energy_meter(device: torch.device, powercap: Path = POWERCAP) -> EnergyMeter:
    """The CPU packages' counters, and a CUDA device's; one line of the log says what is missing and why."""
    sources: list[EnergySource] = []
    missing: list[str] = []
    if device.type == "cuda":
        try:
            sources.append(NvmlDevice(device))
        except EnergySourceError as error:
            missing.append(str(error))
    zones = _zones(powercap)
    if not zones:
        missing.append(f"RAPL: no CPU package under {powercap}")
    for name, directory in zones:
        try:
            sources.append(RaplZone(name, directory))
        except EnergySourceError as error:
            missing.append(f"RAPL: {error}")
    if missing:
        logger.info("secateur_energy_joules_total is without %s", "; ".join(missing))
    return EnergyMeter(sources)


def _zones(powercap: Path) -> list[tuple[str, Path]]:
    """Packages, and the memory beside each.

    A package's other parts (core, uncore) are counted with it, as it is with the whole platform (psys).
    """
    found = []
    for package in sorted(powercap.glob("intel-rapl:*")):
        name = _text(package / "name")
        if not name.startswith("package"):
            continue
        found.append((f"rapl:{name}", package))
        found += [
            (f"rapl:{name}/dram", part)
            for part in sorted(package.glob("intel-rapl:*"))
            if _text(part / "name") == "dram"
        ]
    return found


def _text(file: Path) -> str:
    """ "" where it cannot be read."""
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _number(file: Path) -> int:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise EnergySourceError(str(error)) from error
