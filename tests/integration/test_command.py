"""The command in a process of its own: it measures, serves, says so, and ends in order."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from server.__main__ import EXIT_FAILED, EXIT_USAGE, main
from server.commands.serve import _bind, _listen
from server.settings import ServeSettings, SettingsError
from tests.integration.live import MAX_MODEL_LEN, WAIT_SECONDS
from tests.integration.sse import events

COMPLETIONS = "/v1/completions"
ENDLESS = {"prompt": "a", "max_tokens": MAX_MODEL_LEN - 8, "ignore_eos": True}
ROOT = Path(__file__).parents[2]

START_SECONDS = 200.0  # a process that imports torch takes its time on a machine that is busy otherwise
pytestmark = pytest.mark.timeout(300)


class Process:
    """`secateur serve` on a free port; its output is read as it comes."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.output = ""
        self._started = threading.Event()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "server", "serve", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def url(self) -> str:
        assert self._started.wait(START_SECONDS), self.output
        found = re.search(r"serves .* on (http://127\.0\.0\.1:\d+)", self.output)
        assert found, self.output
        return found[1]

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit status."""
        code = self._process.wait(WAIT_SECONDS)
        self._reader.join(WAIT_SECONDS)
        return code

    def kill(self) -> None:
        self._process.kill()
        self.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.output += line
            if "curl http" in line:
                self._started.set()
        self._process.stdout.close()
        self._started.set()


@contextmanager
def serving(environment: dict[str, str], *arguments: str) -> Iterator[Process]:
    limits = ["--port", "0", "--max-model-len", str(MAX_MODEL_LEN), "--kv-cache-gib", "0.0625"]
    process = Process([*limits, *arguments], environment)
    try:
        yield process
    finally:
        process.kill()


@contextmanager
def endless_stream(process: Process) -> Iterator[Iterator[str]]:
    """The lines of an answer that has begun and does not end by itself."""
    body = {**ENDLESS, "stream": True}
    with (
        httpx.Client(base_url=process.url(), timeout=WAIT_SECONDS) as client,
        client.stream("POST", COMPLETIONS, json=body) as response,
    ):
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        yield lines


def test_sigterm_finishes_what_runs_refuses_what_comes_and_exits_with_0(
    environment: dict[str, str], eventually: Callable[[Callable[[], bool]], None]
) -> None:
    with serving(environment, "--sparsities", "0,0.1") as process:
        url = process.url()
        assert "tiny:s0" in process.output
        assert "tiny:s10" in process.output
        assert "--shutdown" not in process.output
        body = {**ENDLESS, "max_tokens": 800}
        with httpx.Client(base_url=url, timeout=WAIT_SECONDS) as client, ThreadPoolExecutor(1) as pool:
            streamed = pool.submit(events, client, COMPLETIONS, body)
            eventually(lambda: 'running{variant="tiny:s0"} 1.0' in client.get("/metrics").text)
            process.signal(signal.SIGTERM)
            eventually(lambda: client.get("/ready").status_code == 503)
            assert client.get("/health").status_code == 200
            late = client.post(COMPLETIONS, json={"prompt": "a"})
            assert (late.status_code, late.json()["error"]["code"]) == (503, "shutting_down")
            assert int(late.headers["retry-after"]) >= 1
            *_, finish, done = streamed.result()
        assert (json.loads(finish)["choices"][0]["finish_reason"], done) == ("length", "[DONE]")
        assert process.wait() == 0
        assert "POST /v1/completions 200 variant=tiny:s0" in process.output
        assert "POST /v1/completions 503" in process.output
        assert "/metrics" not in process.output
        assert "Traceback" not in process.output


def test_what_outlasts_the_shutdown_is_told_and_cut_off(
    environment: dict[str, str], eventually: Callable[[Callable[[], bool]], None]
) -> None:
    with serving(environment, "--shutdown-timeout-seconds", "0.2") as process:
        url = process.url()
        with endless_stream(process) as lines, ThreadPoolExecutor(1) as pool:
            whole = pool.submit(httpx.post, f"{url}{COMPLETIONS}", json=ENDLESS, timeout=WAIT_SECONDS)
            eventually(lambda: 'running{variant="tiny:s0"} 2.0' in httpx.get(f"{url}/metrics").text)
            process.signal(signal.SIGINT)
            *_, last, _ = lines
        error = json.loads(last.removeprefix("data: "))["error"]
        assert error["code"] == "shutting_down"
        answer = whole.result()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
        assert process.wait() == 0
        assert "shutdown_timeout_seconds" in process.output


def test_a_second_signal_ends_it_at_once(
    environment: dict[str, str], eventually: Callable[[Callable[[], bool]], None]
) -> None:
    with serving(environment) as process, endless_stream(process):
        process.signal(signal.SIGTERM)
        eventually(lambda: httpx.get(f"{process.url()}/ready").status_code == 503)
        process.signal(signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--task", "poetry"], EXIT_FAILED, "no built-in task 'poetry'"),
        (["--model", "nowhere"], EXIT_FAILED, "nowhere"),
        (["--max-model-len", "1000000", "--kv-cache-gib", "2"], EXIT_FAILED, "max_model_len"),
        (["--device", "abacus"], EXIT_USAGE, "abacus"),
        (["--device", "meta"], EXIT_USAGE, "not supported"),
        (["--sparsities", "0.3,0.5"], EXIT_USAGE, "0.3 is beyond the safe 0.2"),
        (["--score", "wanda", "--allocation", "global"], EXIT_USAGE, "use uniform"),
        (["--host", "host.invalid"], EXIT_USAGE, "cannot listen on host.invalid:0"),
    ],
)
def test_what_does_not_work_is_one_line_and_a_status(
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    told: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["serve", "--port", "0", *arguments]) == status
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("secateur: ")
    assert told in last


def test_a_port_in_use_is_known_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port), "--model", "nowhere"]) == EXIT_USAGE
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the second cannot have it at all")
def test_a_port_that_another_takes_while_the_model_loads_is_told() -> None:
    """Both may have it while neither listens."""
    settings = ServeSettings(port=0)
    with _bind("127.0.0.1", 0) as first, _bind("127.0.0.1", first.getsockname()[1]) as second:
        _listen(first, settings)
        with pytest.raises(SettingsError, match="any more"):
            _listen(second, settings)
