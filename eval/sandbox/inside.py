"""Runs in the sandbox, as a script: gives up what is left of its rights, then runs the code it was handed.

Knows the standard library alone, and nothing of how it was shut in. Its order is the JSON line on standard
input that sandbox.py writes; the rest of standard input is the code.
"""

import ctypes
import json
import os
import resource
import sys
import types
from typing import Any

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
PR_SET_NO_NEW_PRIVS = 38
INSTRUCTION_BYTES = 8


class FilterProgram(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def main() -> None:
    header, _, code = sys.stdin.buffer.read().partition(b"\n")
    order = json.loads(header)
    token = order["token"]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the order is not for the code to read
    os.environ.clear()  # what the launcher and the interpreter have set themselves
    os.chdir(order["scratch"])
    limit(order["limits"], order["strict"])
    if order["filter"]:
        filter_system_calls(bytes.fromhex(order["filter"]))
    module = types.ModuleType("answer")
    sys.modules["answer"] = module
    write, leave = os.write, os._exit  # before the code can replace them
    write(1, f"{token} begin\n".encode())
    exec(compile(code, "<answer>", "exec"), module.__dict__)
    sys.stdout.flush()
    write(1, f"{token} end\n".encode())
    leave(0)


def limit(limits: dict[str, int], strict: bool) -> None:
    """Sets resource limits that nobody without privileges can raise again."""
    for name, value in limits.items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        try:
            resource.setrlimit(number, (value, value))
        except (OSError, ValueError):  # macOS limits no address space
            if strict:
                raise


def filter_system_calls(program: bytes) -> None:
    """Installs a BPF program that judges every system call from now on."""
    libc: Any = ctypes.CDLL(None, use_errno=True)
    filters = FilterProgram(len(program) // INSTRUCTION_BYTES, program)
    for call in (
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filters), 0, 0),
    ):
        if libc.prctl(*call):
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    main()
