"""Everybody gets every cell, in turns, while the others stand still."""

import asyncio

import pytest

from bench import compare as module
from bench.compare import compare
from bench.contender import Contender
from bench.servers import Launch


class FakeServer:
    """Counts nothing but whether it is paused."""

    launch = Launch("fake", "model", ["run", "it"], "/health")
    ready_seconds = 1.0
    paused = False

    def pause(self):
        self.paused = True

    def resume(self):
        self.paused = False

    def cpu_seconds(self):
        return 0.0

    def resident_bytes(self):
        return 100


@pytest.fixture
def contenders():
    return [Contender(name, [FakeServer(), FakeServer()], [object()], None) for name in ("a", "b", "c")]


@pytest.fixture
def run(contenders, monkeypatch):
    """Compares on two cells; what ran, in order, and the result."""

    def limits():
        assert all(server.paused for each in contenders for server in each.servers)
        return {"bytes_per_second": 1.0, "flops_per_second": 1.0}

    monkeypatch.setattr(module, "limits", limits)
    ran = []

    def cell(name):
        async def figures(active):
            moving = [each.name for each in contenders if not any(server.paused for server in each.servers)]
            assert moving == [active.name]
            ran.append((name, active.name))
            return {"x": float(len(ran))}

        return figures

    result = asyncio.run(compare(contenders, {"W1": cell("W1"), "W2": cell("W2")}, rounds=2))
    return ran, result


def test_cells_run_on_all_in_turn_and_backwards_in_every_other_round(run):
    ran, _ = run
    assert ran[:6] == [(cell, who) for cell in ("W1", "W2") for who in "abc"]
    assert ran[6:] == [(cell, who) for cell in ("W2", "W1") for who in "bca"]


def test_every_round_is_kept_under_its_cell_and_contender(run):
    _, result = run
    told = result["contenders"]["a"]
    assert [each["x"] for each in told["figures"]["W1"]["rounds"]] == [1.0, 12.0]
    assert [each["x"] for each in told["figures"]["W2"]["rounds"]] == [4.0, 9.0]
    assert told["resident_bytes"] == 200
    assert len(result["limits"]) == 2


def test_all_go_on_afterwards(run, contenders):
    assert not any(server.paused for each in contenders for server in each.servers)
