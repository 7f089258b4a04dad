"""Code that means harm does none, on every backend that this machine has, and the caller notices nothing."""

import logging
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from eval.sandbox import sandbox as sandbox_module
from eval.sandbox.backends import Backend, backends, unsandboxed
from eval.sandbox.sandbox import OUTPUT_BYTES, Sandbox, SandboxError, check, open_sandbox

# Generous where the code ends by itself: a busy machine must not decide.
SECONDS = 30.0
SECRET = "d41d8cd98f00"


@pytest.fixture(scope="module", params=["bubblewrap", "namespaces"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    """Of every kind, the first that works here."""
    told = "this machine does not offer it"
    for backend in backends():
        if backend.name == request.param:
            try:
                check(backend)
            except SandboxError as error:
                told = str(error)
                assert "start" in told, f"it runs but breaks its promises: {told}"
            else:
                return Sandbox(backend)
    pytest.skip(f"{request.param}: {told}")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) <= before


def attempts(*lines: str) -> str:
    """Code that runs to its end if any of the lines works: then the sandbox has a hole."""
    return f"""
import ctypes, os, socket, subprocess, sys, threading
for line in {lines!r}:
    try:
        exec(line)
    except (OSError, RuntimeError, MemoryError, AssertionError, ValueError):
        continue
    print("a hole:", line)
    sys.exit()
raise Exception("all refused")
"""


def refused(sandbox: Sandbox, *lines: str) -> None:
    result = sandbox.run(attempts(*lines), timeout_seconds=SECONDS)
    assert "all refused" in result.output
    assert result.reason == "failed"


def test_code_passes_if_it_runs_to_its_end(sandbox: Sandbox) -> None:
    result = sandbox.run("import math\nprint('π =', math.pi)", timeout_seconds=SECONDS)
    assert (result.passed, result.reason) == (True, "passed")
    assert result.output == "π = 3.141592653589793\n"
    used = "open('notes', 'w').write('kept')\nassert open('/tmp/notes').read() == 'kept'"
    assert sandbox.run(used, timeout_seconds=SECONDS).passed


@pytest.mark.parametrize(
    "code",
    [
        "assert 1 == 2",
        "def f(:",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "import os; os.close(1); os._exit(0)",
        "import os; os.dup2(os.open('/dev/null', os.O_WRONLY), 1); print('gone')",
        "import numpy",
        "import server",
        "\0",
        "f" + "(" * 5_000,
    ],
)
def test_code_fails_if_it_does_not(sandbox: Sandbox, code: str) -> None:
    result = sandbox.run(code, timeout_seconds=SECONDS)
    assert (result.passed, result.reason) == (False, "failed")


def test_a_crash_is_a_failure(sandbox: Sandbox) -> None:
    result = sandbox.run("import ctypes; ctypes.string_at(0)", timeout_seconds=SECONDS)
    assert (result.passed, result.reason) == (False, "killed")


def test_no_process_no_thread_no_program(sandbox: Sandbox) -> None:
    refused(
        sandbox,
        "os.fork()",
        "os.forkpty()",
        "subprocess.run(['/usr/bin/env'])",
        "os.execv('/usr/bin/env', ['env'])",
        "threading.Thread(target=print).start()",
    )


def test_a_fork_bomb(sandbox: Sandbox) -> None:
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    assert sandbox.run(bomb, timeout_seconds=0.3).reason in ("killed", "time")


def test_a_hundred_gigabytes(sandbox: Sandbox) -> None:
    refused(sandbox, "bytearray(100 * 2**30)", "held = []\nwhile True: held.append(bytearray(2**28))")


def test_an_endless_loop_and_an_endless_sleep(sandbox: Sandbox) -> None:
    assert sandbox.run("while True: pass", timeout_seconds=1).reason in ("killed", "time")
    assert sandbox.run("import time; time.sleep(1e6)", timeout_seconds=0.1).reason == "time"
    closed = "import os, time; os.close(1); os.close(2); time.sleep(1e6)"
    assert sandbox.run(closed, timeout_seconds=0.1).reason == "time"


def test_a_gigabyte_printed(sandbox: Sandbox) -> None:
    result = sandbox.run("for _ in range(1024): print('x' * 2**20)", timeout_seconds=SECONDS)
    assert (result.passed, result.reason) == (False, "output")
    assert len(result.output) <= OUTPUT_BYTES


def test_nothing_is_written_outside(sandbox: Sandbox, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("untouched")
    places = [f"{mine}", "/usr/x", "/x", "/etc/x", "/dev/x", "/dev/shm/x", f"{sandbox_module.__file__}"]
    refused(sandbox, *(f"open({place!r}, 'w')" for place in places), f"os.unlink({str(mine)!r})")
    refused(sandbox, *(f"os.chmod({place!r}, 0o777)" for place in ("/", "/usr", "/usr/bin")))
    assert mine.read_text() == "untouched"


def test_the_disk_inside_is_small(sandbox: Sandbox) -> None:
    refused(sandbox, "for i in range(64): open(f'/tmp/{i}', 'wb').write(bytes(2**20))")


def test_nothing_is_read_but_python(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text(SECRET)
    monkeypatch.setenv("SECATEUR_ADMIN_KEY", SECRET)
    places = ["/etc/passwd", "/etc/hostname", "/proc/self/environ", "/proc/1/root", "/root/.bashrc"]
    places += [str(tmp_path / "secret"), sandbox_module.__file__]
    refused(sandbox, *(f"open({place!r}).read()" for place in places), "assert os.environ")
    seen = sandbox.run(
        "import os, sys; print(dict(os.environ), sys.argv, sys.stdin.read())", timeout_seconds=SECONDS
    )
    assert seen.passed
    assert SECRET not in seen.output


def test_no_network(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        refused(
            sandbox,
            f"socket.create_connection(('127.0.0.1', {port}))",
            "socket.socket()",
            "socket.socket(socket.AF_UNIX)",
            "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
            "socket.socket(40, socket.SOCK_STREAM)",  # AF_VSOCK belongs to no network namespace
        )


def test_nobody_outside_can_be_killed(sandbox: Sandbox) -> None:
    outside = {os.getpid(), os.getppid()} - {1}  # inside, number 1 is another process
    refused(sandbox, *(f"os.kill({pid}, 9)" for pid in outside), f"os.killpg({os.getpgrp()}, 9)")
    for victim in ("os.getppid()", "1", "-1", "0"):
        result = sandbox.run(f"import os\nos.kill({victim}, 9)\nos._exit(1)", timeout_seconds=SECONDS)
        assert not result.passed


def test_no_way_to_more_rights(sandbox: Sandbox) -> None:
    call = "assert ctypes.CDLL(None, use_errno=True)."
    refused(
        sandbox,
        call + "unshare(0x10000000) == 0",  # a user namespace of its own
        call + "mount(b'x', b'/tmp', b'tmpfs', 0, b'') == 0",
        call + "chroot(b'/tmp') == 0",
        call + "ptrace(0, 0, 0, 0) == 0",
        "os.setuid(0)",
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    )


def test_runs_at_once_are_independent(sandbox: Sandbox) -> None:
    def run(number: int) -> tuple[bool, str]:
        code = f"open('x', 'x').write('{number}')\nprint({number}, flush=True)\nassert {number} % 2"
        result = sandbox.run(code, timeout_seconds=SECONDS)
        return result.passed, result.output.split("\n")[0]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(8))) == [(number % 2 == 1, str(number)) for number in range(8)]


def test_what_cannot_start_is_no_verdict_on_the_code(sandbox: Sandbox) -> None:
    for command in (["/bin/false"], ["/no/such/program"], ["/bin/echo", "no namespaces here"]):
        with pytest.raises(SandboxError, match=r"could not start|cannot start"):
            Sandbox(Backend("broken", "", command)).run("pass", timeout_seconds=SECONDS)


def test_a_full_disk_is_no_verdict_on_the_code(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("eval.sandbox.sandbox.tempfile.TemporaryFile", full)
    with pytest.raises(SandboxError, match=r"No space left on device.*make room for"):
        sandbox.run("pass", timeout_seconds=SECONDS)


def test_a_backend_that_leaks_is_found_out() -> None:
    with pytest.raises(SandboxError, match=r"(?s)failed: .*AssertionError"):
        check(Backend("leaky", "", unsandboxed().command))


def test_without_a_sandbox_nothing_runs_unless_that_is_accepted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sandbox_module, "backends", lambda: iter([Backend("broken", "", ["/bin/false"])]))
    with pytest.raises(SandboxError, match=r"broken: .*--i-accept-unsandboxed-code"):
        open_sandbox(accept_unsandboxed=False)
    bare = open_sandbox(accept_unsandboxed=True)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert bare.run("open('here', 'w')", timeout_seconds=SECONDS).passed
    assert not Path("here").exists()
    assert bare.run("while True: pass", timeout_seconds=0.3).reason in ("killed", "time")
    assert bare.run("import os; assert not os.environ; 1 / 0", timeout_seconds=SECONDS).reason == "failed"
    assert bare.run("while True: print('x' * 2**20)", timeout_seconds=SECONDS).reason == "output"


def test_the_backend_in_use_is_logged_once(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        chosen = open_sandbox(accept_unsandboxed=False)
    assert [record.levelno for record in caplog.records] == [logging.INFO]
    assert chosen.backend.name in caplog.text
    assert chosen.backend.isolates
