"""Runs a piece of model-written Python in a process that can do no harm, and tells whether it ran through.

Here are the limits in time and output, and the verdict. What a process may see is backends.py's, what it may
ask of the kernel seccomp.py's, and what it does with itself before the code starts is inside.py's.
"""

import json
import logging
import os
import secrets
import select
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import IO, Literal

from eval.sandbox.backends import Backend, backends, unsandboxed
from eval.sandbox.seccomp import filter_program
from pruning.errors import SecateurError

logger = logging.getLogger(__name__)

MEMORY_BYTES = 1 << 30  # of address space; there is one process, so also in all
FILE_BYTES = 16 << 20  # of one file, and of the whole tmpfs
OUTPUT_BYTES = 1 << 20  # printed; one byte more ends it
OPEN_FILES = 64
# The limit is on CPU time, so that a busy machine fails nobody. Who sleeps or waits is stopped by the clock,
# which runs from the code's first line on.
WALL_PER_CPU_SECOND = 3.0
START_SECONDS = 60.0

TRIAL_SECONDS = 10.0
# What every backend promises, checked before it is trusted.
TRIAL = """
import os
assert not os.path.exists("/etc/passwd") and not os.path.exists("/proc/self")
assert not os.environ
assert os.getuid() == 65534
def refused(action):
    try:
        action()
    except OSError:
        return True
    return False
assert refused(os.fork)
assert refused(lambda: open("/written", "w"))
assert refused(lambda: open("/usr/written", "w"))
open("/tmp/written", "w").close()
"""

Reason = Literal["passed", "failed", "killed", "time", "output"]


class SandboxError(SecateurError):
    """No sandbox can be had, or one could not start. Never the fault of the code that was to run."""


@dataclass(frozen=True)
class SandboxResult:
    """What became of the code.

    Attributes:
        passed: it ran to its end; nothing was raised and nobody exited early.
        output: what it printed, both streams, `OUTPUT_BYTES` at most.
        reason: "passed"; "failed": raised or exited; "killed": by the kernel, for CPU time or a crash;
            "time": by the clock; "output": printed too much.
    """

    passed: bool
    output: str
    reason: Reason


class Sandbox:
    """Runs code with one backend. Thread-safe; several runs at once are independent of each other.

    It protects the machine from the code, not the verdict from code that sets out to forge it: the tests run
    in the same interpreter as the answer they test.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def run(self, code: str, *, timeout_seconds: float) -> SandboxResult:
        """Runs `code` as a module of its own, in an interpreter with nothing but the standard library.

        Args:
            timeout_seconds: of CPU time, rounded up to whole seconds; the clock allows three times as many.

        Raises:
            SandboxError: the process could not start, or there is no room for what it is to run.
        """
        token = secrets.token_hex(16)
        begin, end = f"{token} begin\n".encode(), f"{token} end\n".encode()
        try:
            with ExitStack() as stack:
                scratch = "/tmp"  # inside
                if not self.backend.isolates:
                    scratch = stack.enter_context(tempfile.TemporaryDirectory())
                order = stack.enter_context(tempfile.TemporaryFile())
                order.write(_order(code, token, timeout_seconds, scratch, strict=self.backend.isolates))
                order.seek(0)
                process = stack.enter_context(_start(self.backend, order))
                stack.callback(_end, process)
                output, stopped = _read(process, begin, WALL_PER_CPU_SECOND * timeout_seconds)
        except OSError as error:
            raise SandboxError(
                f"code cannot be run ({error}): make room for temporary files, or set TMPDIR"
            ) from error
        before, begun, rest = output.partition(begin)
        if not begun:
            told = before.decode(errors="replace").strip() or stopped or f"status {process.returncode}"
            raise SandboxError(f"the sandbox ({self.backend.name}) could not start: {told}")
        printed, ended, _ = rest.partition(end)
        reason = stopped or _reason(process.returncode, bool(ended))
        return SandboxResult(reason == "passed", printed.decode(errors="replace"), reason)


def open_sandbox(*, accept_unsandboxed: bool) -> Sandbox:
    """The strongest sandbox that works here, found by trying, or none at all if that is accepted.

    Raises:
        SandboxError: none works, and running without one is not accepted.
    """
    complaints = []
    for backend in backends():
        try:
            check(backend)
        except SandboxError as error:
            complaints.append(f"{backend.name}: {error}")
            continue
        logger.info("model-written code runs in a sandbox: %s (%s)", backend.name, backend.gives)
        return Sandbox(backend)
    told = "; ".join(complaints) or "it takes Linux on x86-64 or arm64"
    if not accept_unsandboxed:
        raise SandboxError(
            f"no sandbox for model-written code can be had ({told}): install bubblewrap, allow user "
            "namespaces, or accept the risk with --i-accept-unsandboxed-code"
        )
    backend = unsandboxed()
    logger.warning("model-written code runs without a sandbox (%s): %s", told, backend.gives)
    return Sandbox(backend)


def check(backend: Backend) -> None:
    """Finds out from inside whether `backend` keeps its promises. Raises SandboxError: it does not."""
    result = Sandbox(backend).run(TRIAL, timeout_seconds=TRIAL_SECONDS)
    if not result.passed:
        raise SandboxError(f"{result.reason}: {result.output.strip()[-200:]}")


def _order(code: str, token: str, timeout_seconds: float, scratch: str, *, strict: bool) -> bytes:
    """What inside.py reads: a line of JSON, then the code. `strict`: all limits can be set, or it ends."""
    seconds = max(1, -int(-timeout_seconds // 1))
    header = {
        "token": token,
        "scratch": scratch,
        "strict": strict,
        "limits": {
            "RLIMIT_CPU": seconds,
            "RLIMIT_AS": MEMORY_BYTES,
            "RLIMIT_FSIZE": FILE_BYTES,
            "RLIMIT_NOFILE": OPEN_FILES,
            "RLIMIT_CORE": 0,
        },
        "filter": (filter_program() or b"").hex(),
    }
    return json.dumps(header).encode() + b"\n" + code.encode(errors="surrogateescape")


def _start(backend: Backend, order: IO[bytes]) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            backend.command,
            stdin=order,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            env={},
            cwd="/",
            start_new_session=True,
            user=backend.uid,
            group=backend.uid,
            extra_groups=None if backend.uid is None else (),
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SandboxError(f"cannot start {backend.name}: {error}") from error


def _read(process: "subprocess.Popen[bytes]", begin: bytes, seconds: float) -> tuple[bytes, Reason | None]:
    """What is printed until the process ends, or is ended for the time or the output, and which of the two.

    The process has `START_SECONDS` to print `begin`, and `seconds` from there on.
    """
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    deadline, begun = time.monotonic() + START_SECONDS, False
    output = bytearray()
    while True:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return bytes(output), "time"
        chunk = os.read(descriptor, 1 << 16)
        output += chunk
        if len(output) > OUTPUT_BYTES:
            return bytes(output[:OUTPUT_BYTES]), "output"
        if not begun and begin in output:
            begun, deadline = True, time.monotonic() + seconds
        if not chunk:  # it ends, or has closed its output and goes on
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
                return bytes(output), None
            return bytes(output), "time"
        if time.monotonic() > deadline:
            return bytes(output), "time"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kills what still runs: the group, and with its first process the whole PID namespace."""
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):  # as macOS has it for one that has just ended
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _reason(status: int, ended: bool) -> Reason:
    if ended and status == 0:
        return "passed"
    return "killed" if status < 0 or status > 128 else "failed"
