"""Processes that train together add up what each found, wait for one another, and notice when one is gone."""

import os
import socket
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from pruning.errors import DeltaError
from pruning.recovery.processes import Processes, joined

CPU = torch.device("cpu")
COUNT = 3


def run_together(work: object, *arguments: object) -> None:
    """`work` in three processes, each with its number first; raises what one of them raised."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_started, (port, work, *arguments), nprocs=COUNT)


def _started(index: int, port: int, work, *arguments: object) -> None:
    """As a launcher starts it."""
    torch.set_num_threads(1)
    place = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": COUNT, "LOCAL_WORLD_SIZE": COUNT}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    work(index, *arguments)


def _work(index: int, directory: Path) -> None:
    with joined(CPU) as processes:
        assert (processes.index, processes.count, processes.on_device) == (index, COUNT, COUNT)
        assert processes.share([0, 1, 2, 3]) == [[0, 3], [1], [2]][index]
        matrix, vector = torch.full((2, 3), 10.0**index), torch.arange(4.0) * index
        processes.add_up([matrix, vector])
        assert torch.equal(matrix, torch.full((2, 3), 111.0))
        assert torch.equal(vector, torch.arange(4.0) * 3)
        with processes.first_ahead():
            assert (directory / "made").exists() == (not processes.is_first)
            if processes.is_first:
                (directory / "made").touch()
        (directory / f"done-{index}").touch()


def _work_until_one_is_gone(index: int, directory: Path) -> None:
    if index == 1:
        with joined(CPU):
            os._exit(0)
    with joined(CPU) as processes:
        told = None
        while told is None:
            try:
                processes.wait()
            except DeltaError as error:
                told = str(error)
        assert "another of the 3 processes has ended" in told
    (directory / f"told-{index}").touch()


def _work_and_leave(index: int, directory: Path) -> None:
    with joined(CPU) as processes:
        import_module("torch.distributed.nn.functional")  # as torch does by itself during a training
        processes.wait()
        assert _gloo_threads()
    assert not _gloo_threads()
    (directory / f"left-{index}").touch()


def _gloo_threads() -> list[str]:
    names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


def test_they_add_up_and_wait(tmp_path: Path) -> None:
    run_together(_work, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"made", "done-0", "done-1", "done-2"}


def test_one_that_is_gone_is_noticed(tmp_path: Path) -> None:
    run_together(_work_until_one_is_gone, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"told-0", "told-2"}


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_nothing_of_the_group_is_left_running(tmp_path: Path) -> None:
    """A thread of it that is there when Python ends aborts the process: now and then a training failed so."""
    run_together(_work_and_leave, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"left-0", "left-1", "left-2"}


def test_one_alone_needs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined(CPU) as processes:
        assert processes == Processes(CPU)
        assert processes.is_first
        values = torch.ones(2)
        processes.add_up([values])
        assert torch.equal(values, torch.ones(2))
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:0", "2 processes would share the device cuda:0"),
        ("cuda", "2 processes were started for 1 CUDA"),
    ],
)
def test_more_processes_than_devices_are_refused(
    device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeltaError, match=message), joined(torch.device(device)):
        pass
