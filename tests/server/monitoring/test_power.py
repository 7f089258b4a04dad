"""Joules add up over a counter that wraps; what cannot be read is left out, with one line that says why."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
import torch

from server.monitoring.power import EnergyMeter, open_energy_meter

CPU = torch.device("cpu")
RANGE = 262_143_328_850


def zone(parent: Path, number: str, name: str, microjoules: int) -> Path:
    directory = parent / f"intel-rapl:{number}"
    directory.mkdir(parents=True)
    (directory / "name").write_text(f"{name}\n")
    (directory / "max_energy_range_uj").write_text(f"{RANGE}\n")
    set_counter(directory, microjoules)
    return directory


def set_counter(directory: Path, microjoules: int) -> None:
    (directory / "energy_uj").write_text(f"{microjoules}\n")


def test_joules_count_from_the_start_and_over_the_counters_end(tmp_path: Path) -> None:
    package = zone(tmp_path, "0", "package-0", RANGE - 3_000_000)
    meter = open_energy_meter(CPU, tmp_path)
    assert meter.joules() == {"rapl:package-0": 0}
    set_counter(package, RANGE - 1_000_000)
    assert meter.joules() == {"rapl:package-0": 2}
    set_counter(package, 4_000_000)
    assert meter.joules() == {"rapl:package-0": 7}
    assert meter.joules() == {"rapl:package-0": 7}


def test_packages_and_their_memory_count_and_nothing_twice(tmp_path: Path) -> None:
    """A package holds its cores, the platform holds the packages; the kernel lists zones flat as well."""
    first = zone(tmp_path, "0", "package-0", 0)
    parts = [zone(first, "0:0", "core", 0), zone(first, "0:1", "dram", 0)]
    zone(tmp_path, "1", "package-1", 0)
    zone(tmp_path, "2", "psys", 0)
    for part in ("0:0", "0:1"):
        (tmp_path / f"intel-rapl:{part}").symlink_to(first / f"intel-rapl:{part}")
    (tmp_path / "intel-rapl").mkdir()
    meter = open_energy_meter(CPU, tmp_path)
    for joules, directory in enumerate((first, *parts), start=1):
        set_counter(directory, joules * 1_000_000)
    assert meter.joules() == {"rapl:package-0": 1, "rapl:package-0/dram": 3, "rapl:package-1": 0}


@pytest.mark.parametrize("damage", ["no directory", "no counter", "nonsense"])
def test_a_counter_that_cannot_be_read_is_absent_and_one_line_says_why(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if damage != "no directory":
        counter = zone(tmp_path, "0", "package-0", 0) / "energy_uj"
        if damage == "no counter":
            counter.unlink()
        else:
            counter.write_text("<unsupported>")
    with caplog.at_level(logging.INFO):
        meter = open_energy_meter(CPU, tmp_path)
    assert meter.joules() == {}
    [record] = caplog.records
    assert "secateur_energy_joules_total" in record.getMessage()
    assert str(tmp_path) in record.getMessage() or "<unsupported>" in record.getMessage()


def test_a_counter_that_goes_away_leaves_the_others(tmp_path: Path) -> None:
    gone = zone(tmp_path, "0", "package-0", 0)
    zone(tmp_path, "1", "package-1", 0)
    meter = open_energy_meter(CPU, tmp_path)
    (gone / "energy_uj").unlink()
    assert meter.joules() == {"rapl:package-1": 0}
    set_counter(gone, 5_000_000)
    assert meter.joules() == {"rapl:package-0": 5, "rapl:package-1": 0}


def nvml(monkeypatch: pytest.MonkeyPatch, readings: list[int]) -> EnergyMeter:
    """A meter over a made-up device: CUDA's first, NVML's fourth."""
    readings = [*readings]
    calls = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
        "nvmlDeviceGetIndex": lambda handle: {"GPU-8a2c": 3}[handle],
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: readings.pop(0),
    }
    for name, call in calls.items():
        monkeypatch.setattr(pynvml, name, call)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="8a2c"))
    return open_energy_meter(torch.device("cuda"), Path("/nonexistent"))


def test_nvml_counts_from_the_start_by_its_own_number_of_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    meter = nvml(monkeypatch, [5_000, 5_000, 7_500])
    assert meter.joules() == {"nvml:3": 0}
    assert meter.joules() == {"nvml:3": 2.5}


def test_without_nvml_there_is_no_joule(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    with caplog.at_level(logging.INFO):
        assert open_energy_meter(torch.device("cuda"), Path("/nonexistent")).joules() == {}
    assert "NVML" in caplog.text


@pytest.mark.gpu
def test_a_real_gpu_uses_energy_while_it_computes() -> None:
    device = torch.device("cuda:0")
    meter = open_energy_meter(device, Path("/nonexistent"))
    matrix = torch.randn(8192, 8192, device=device)
    for _ in range(100):
        matrix = matrix @ matrix / 8192
    torch.cuda.synchronize()
    [(name, joules)] = meter.joules().items()
    assert name.startswith("nvml:")
    assert 0 < joules < 10_000
