"""The ways to shut a process in, strongest first, each as a command line that ends in inside.py.

Builds commands; runs nothing.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.sandbox.seccomp import filter_program

NOBODY = 65534
TMPFS_BYTES = 16 << 20
DEVICES = ("/dev/null", "/dev/urandom")
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Backend:
    """A way to run inside.py.

    Attributes:
        name: of the way.
        gives: what is kept from the code, for the log.
        command: runs inside.py, which reads its order from standard input.
        isolates: the file system, processes and network of the machine are out of reach.
        uid: user and group that the process takes before anything else; None: the caller's.
    """

    name: str
    gives: str
    command: Sequence[str]
    isolates: bool = True
    uid: int | None = None


def backends() -> Iterator[Backend]:
    """Those that might work here, strongest first. Root becomes nobody first, if nobody may read Python."""
    if sys.platform != "linux" or filter_program() is None:
        return
    gives = "no network, files, environment or processes but its own; limits on CPU, memory and files"
    bwrap = shutil.which("bwrap")
    for uid in (NOBODY, None) if os.getuid() == 0 else (None,):
        if bwrap is not None:
            yield Backend("bubblewrap", gives, _bubblewrap(bwrap), uid=uid)
        yield Backend("namespaces", gives, _namespaces(), uid=uid)


def unsandboxed() -> Backend:
    """A process with limits and a system call filter, as far as the system has them, and nothing more."""
    return Backend(
        "none", "limits alone; it reads and writes what you can", _python("inside.py"), isolates=False
    )


def _python(script: str, *arguments: str) -> list[str]:
    """The interpreter below the virtual environment, with the standard library alone."""
    interpreter = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    source = (HERE / script).read_text(encoding="utf-8")  # as text, since nobody may read our files
    return [interpreter, "-I", "-S", "-B", "-c", source, *arguments]


def _readable() -> list[str]:
    """What Python needs of the file system: itself and its libraries. Nothing of /home, /var or /proc."""
    wanted = ["/usr", "/lib", "/lib64", "/etc/ld.so.cache", sys.base_prefix]
    found = [path for path in dict.fromkeys(wanted) if os.path.exists(path)]
    return [path for path in found if not any(Path(other) in Path(path).parents for other in found)]


def _bubblewrap(bwrap: str) -> list[str]:
    """https://github.com/containers/bubblewrap, 0.5 or newer."""
    command = [bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    command += ["--cap-drop", "ALL", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    for path in _readable():
        command += ["--ro-bind", path, path]
    for device in DEVICES:
        command += ["--dev-bind", device, device]
    command += ["--size", str(TMPFS_BYTES), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp", "--"]
    return command + _python("inside.py")


def _namespaces() -> list[str]:
    """The same by our own hands (enter.py), where bubblewrap is not installed."""
    plan = {
        "uid": NOBODY,
        "readable": _readable(),
        "devices": DEVICES,
        "tmpfs_bytes": TMPFS_BYTES,
        "command": _python("inside.py"),
    }
    return _python("enter.py", json.dumps(plan))
