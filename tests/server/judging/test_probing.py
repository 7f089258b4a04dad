"""Runs that somebody asked for end, whatever happens in them."""

import asyncio

import pytest

from server.judging.probing import ProbeRun, Probing


def test_a_fault_ends_a_run() -> None:
    """Else the next one would have to wait for it for ever."""

    class Broken:
        async def run_now(self, *_: object) -> None:
            raise OSError("too many open files")

    probing = object.__new__(Probing)  # nothing but its prober is asked
    probing._prober = Broken()
    run = ProbeRun(("m:s20",), 10)
    with pytest.raises(OSError, match="too many"):
        asyncio.run(probing._run(run))
    assert run.state == "failed"
    assert "too many open files" in str(run.error)
