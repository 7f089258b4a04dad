"""Shuts itself into fresh Linux namespaces, as a script, then runs a command there.

What bubblewrap does, for machines without it: user, mount, PID, network, IPC and UTS namespaces of its own,
and a root that holds a few read-only trees and an empty tmpfs. Knows the standard library alone. The plan is
the JSON in its argument, which backends.py writes. See user_namespaces(7), mount_setattr(2), pivot_root(2).
"""

import ctypes
import json
import os
import signal
import sys
from typing import Any

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
NAMESPACES = (
    CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
SYS_MOUNT_SETATTR = 442  # the same on every architecture
AT_FDCWD, AT_RECURSIVE = -100, 0x8000

libc: Any = ctypes.CDLL(None, use_errno=True)


class MountAttributes(ctypes.Structure):
    """struct mount_attr of linux/mount.h."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns_fd"))


def main() -> None:
    plan = json.loads(sys.argv[1])
    done(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    user, group = os.getuid(), os.getgid()
    done(libc.unshare(NAMESPACES), "unshare")
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"{plan['uid']} {user} 1")
    write("/proc/self/gid_map", f"{plan['uid']} {group} 1")
    child = os.fork()  # the first process of the new PID namespace; all others die with it
    if child:
        status = os.waitpid(child, 0)[1]
        os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
    build_root(plan)
    done(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    # The user is not 0 in its namespace, so that this takes its capabilities away.
    os.execve(plan["command"][0], plan["command"], {})


def build_root(plan: dict[str, Any]) -> None:
    """Makes a tmpfs the root and binds into it what the plan names; the old root is out of reach."""
    mount("", "/", MS_REC | MS_PRIVATE)
    mount("tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "tmpfs", "size=65536,mode=755")
    os.mkdir("/tmp/old")
    pivot_root("/tmp", "/tmp/old")
    os.mkdir("/new")
    mount("tmpfs", "/new", MS_NOSUID | MS_NODEV, "tmpfs", "size=65536,mode=755")
    for path in plan["readable"]:
        bind(path, MS_RDONLY | MS_NOSUID | MS_NODEV)
    for path in plan["devices"]:
        bind(path, MS_RDONLY | MS_NOSUID)
    os.mkdir("/new/tmp")
    mount("tmpfs", "/new/tmp", MS_NOSUID | MS_NODEV, "tmpfs", f"size={plan['tmpfs_bytes']},mode=755")
    os.chdir("/new")
    pivot_root(".", ".")  # the old one now lies upon the new
    done(libc.umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/tmp")
    mount("", "/", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def bind(path: str, attributes: int) -> None:
    """Shows /old/`path` as /new/`path`, with all that is mounted below."""
    source, target = f"/old{path}", f"/new{path}"
    if os.path.isdir(source):
        os.makedirs(target)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        write(target, "")
    mount(os.path.realpath(source), target, MS_BIND | MS_REC)
    wanted = MountAttributes(attributes, 0, 0, 0)
    result = libc.syscall(
        SYS_MOUNT_SETATTR,
        AT_FDCWD,
        target.encode(),
        AT_RECURSIVE,
        ctypes.byref(wanted),
        ctypes.c_size_t(ctypes.sizeof(wanted)),
    )
    done(result, f"mount_setattr {path}")


def mount(source: str, target: str, flags: int, kind: str = "", data: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())
    done(libc.mount(*arguments), f"mount {target}")


def pivot_root(new: str, old: str) -> None:
    done(libc.pivot_root(new.encode(), old.encode()), f"pivot_root {new}")


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def done(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
