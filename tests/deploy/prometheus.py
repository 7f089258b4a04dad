"""A real Prometheus on a free port, with the committed configuration and rules, that scrapes one server."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import yaml

PROMETHEUS = Path(__file__).parents[2] / "deploy" / "prometheus"
WAIT_SECONDS = 60.0

T = TypeVar("T")


@dataclass(frozen=True)
class Prometheus:
    """One that runs."""

    client: httpx.Client

    def get(self, path: str, **params: Any) -> Any:
        """The data of an answer of its HTTP API; an expression it cannot read is an AssertionError."""
        answer = (
            self.client.post(path, data=params) if "query" in params else self.client.get(path, params=params)
        )
        body = answer.json()
        assert body["status"] == "success", (params, body)
        return body["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series of an expression now, each with `metric` and `value`."""
        result: list[dict[str, Any]] = self.get("/api/v1/query", query=expr)["result"]
        return result

    def wait_for(self, expr: str) -> list[dict[str, Any]]:
        """Its series, once there are some."""
        return eventually(lambda: self.query(expr), lambda: f"there never was any {expr}")


def eventually(look: Callable[[], T], complaint: Callable[[], str]) -> T:
    """What `look` finds, once it is anything; AssertionError with the complaint if it never is."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := look()):
        assert time.monotonic() < deadline, complaint()
        time.sleep(0.1)
    return found


def tool(name: str) -> str:
    """The path of prometheus or promtool; skips the test where it is not."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed: apt-get install prometheus")
    return path


@contextmanager
def scraping(target: str, directory: Path) -> Iterator[Prometheus]:
    """Scrapes `target` (host:port) twice a second instead of every 10 s; nothing else is changed."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"evaluation_interval": "500ms"}
    config["rule_files"] = [str(PROMETHEUS / name) for name in config["rule_files"]]
    (scrape,) = config["scrape_configs"]
    scrape |= {"scrape_interval": "500ms", "static_configs": [{"targets": [target]}]}
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [tool("prometheus"), f"--config.file={directory / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address={address}"]
    log = (directory / "prometheus.log").open("w")
    process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=WAIT_SECONDS) as client:
            said = (directory / "prometheus.log").read_text
            eventually(lambda: _is_ready(client, process), said)
            assert process.poll() is None, said()
            yield Prometheus(client)
    finally:
        process.terminate()
        process.wait(WAIT_SECONDS)
        log.close()


def _is_ready(client: httpx.Client, process: "subprocess.Popen[bytes]") -> bool:
    try:
        return process.poll() is not None or client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False
