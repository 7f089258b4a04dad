"""`make demo`'s program: a server, users and a picture of both, and nothing left when it ends."""

import re
import sys
from collections.abc import Callable, Mapping

import httpx
import pytest

from bench.demo import parse_arguments
from tests.integration.terminal import terminal

# A server in a process of its own that imports torch takes its time on a machine that is busy otherwise.
pytestmark = pytest.mark.timeout(300)


def test_it_shows_moving_numbers_and_ctrl_c_ends_everything(
    environment: Mapping[str, str], eventually: Callable[[Callable[[], bool]], None]
) -> None:
    options = "--max-model-len 1024 --kv-cache-gib 0.0625"
    with terminal([sys.executable, "-m", "bench.demo", "--serve", options], environment) as screen:
        assert screen.shows(b"Ctrl-C ends everything"), screen.shown
        url = re.search(rb"console  (http://127\.0\.0\.1:\d+)/", screen.shown)
        assert url, screen.shown
        assert screen.shows(b"tiny"), screen.shown
        with httpx.Client(base_url=url[1].decode(), timeout=60) as client:
            eventually(lambda: any(v["generation_tokens"] for v in client.get("/v1/live").json()["variants"]))
        screen.interrupt()
    with pytest.raises(httpx.ConnectError):
        httpx.get(url[1].decode())


@pytest.mark.parametrize("options", ["--port 8000", "--threads 1 --port=8000"])
def test_another_port_would_leave_it_waiting_and_is_refused(
    options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--serve", options])
    assert "takes a free port" in capsys.readouterr().err
