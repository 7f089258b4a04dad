"""One checkpoint and one server for all tests that leave it as they found it."""

import io
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

import httpx
import pytest

from server.__main__ import main
from tests.integration.live import WAIT_SECONDS, Live, Tiny, make_tiny, running


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("live"))


@pytest.fixture(scope="session")
def live(tiny: Tiny) -> Iterator[Live]:
    with running(tiny) as server:
        yield server


@pytest.fixture
def client(live: Live) -> Iterator[httpx.Client]:
    with live.client() as client:
        yield client


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Waits for what another thread is about to do; fails when it never does."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            assert time.monotonic() < deadline, "it never happened"
            # Often enough; asking all the time would take the machine from what it waits for.
            time.sleep(0.02)

    return wait


@pytest.fixture(scope="session")
def environment(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """For commands in processes of their own: the tiny model, a task, a cache with the profile."""
    directory = tmp_path_factory.mktemp("command")
    prompts = directory / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"count to {i}"}) for i in range(16)))
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SECATEUR_")},
        "SECATEUR_MODEL": str(tiny.checkpoint.path),
        "SECATEUR_TASK": "counting",
        "SECATEUR_CACHE_DIR": str(directory / "cache"),
        "SECATEUR_THREADS": "1",
    }
    files = ["--prompts", str(prompts), "--distractors", str(prompts), "--num-prompts", "3"]
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(told):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert main(["profile", *files]) == 0
    assert Path(told.getvalue().splitlines()[0]).is_file()
    return variables
