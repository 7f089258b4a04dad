"""Servers come up, are weighed, stand still when told to, and leave nothing behind. Real processes."""

import asyncio
import os
import signal
import sys
import time

import httpx
import psutil
import pytest

from bench.client import BenchError
from bench.servers import Launch, Server, run_to_end, running

# Answers /health, and computes in a child of its own, as vLLM does.
SERVER = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *arguments): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def launch(code: str) -> Launch:
    return Launch("fake", "model", [sys.executable, "-c", code, "{port}"], "/health")


def serve(code, tmp_path, use):
    async def run():
        async with running(launch(code), tmp_path) as server:
            return use(server), psutil.Process(server.pid).children()

    return asyncio.run(run())


def test_a_server_is_ready_weighed_and_ended_with_its_children(tmp_path):
    def use(server: Server):
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert server.peak_bytes() > 0
        child = psutil.Process(server.pid).children()[0].memory_full_info().pss
        assert server.resident_bytes() > child > 0
        return server.pid

    pid, [child] = serve(SERVER, tmp_path, use)
    assert not psutil.pid_exists(pid)
    child.wait(timeout=30)  # init's, so it may take a moment
    assert not child.is_running()


def test_a_paused_server_takes_no_time_and_can_still_be_ended(tmp_path):
    def use(server: Server):
        server.pause()
        before = server.cpu_seconds()
        time.sleep(0.1)
        assert server.cpu_seconds() == before
        server.resume()
        deadline = time.monotonic() + 60
        while server.cpu_seconds() == before:
            assert time.monotonic() < deadline
        server.pause()
        return server.pid

    pid, _ = serve(SERVER, tmp_path, use)
    assert not psutil.pid_exists(pid)


def test_a_server_that_ends_at_once_is_an_error_that_names_its_log(tmp_path):
    with pytest.raises(BenchError, match=r"fake ended with 3 before it was ready: .*\.log"):
        serve("import sys; print('no such model'); sys.exit(3)", tmp_path, lambda server: None)
    [log] = tmp_path.iterdir()
    assert log.read_text() == "no such model\n"


def test_a_terminated_benchmark_leaves_no_server_behind(tmp_path):
    async def run():
        async with running(launch(SERVER), tmp_path) as server:
            pids.append(server.pid)
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(60)

    pids: list[int] = []
    with pytest.raises(asyncio.CancelledError):
        run_to_end(run())
    assert not psutil.pid_exists(pids[0])
