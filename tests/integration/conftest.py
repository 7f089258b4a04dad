"""One checkpoint and one server for all tests that leave it as they found it."""

import time
from collections.abc import Callable, Iterator

import httpx
import pytest

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
            time.sleep(0.002)

    return wait
