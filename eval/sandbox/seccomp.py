"""What sandboxed code may not ask of the kernel, as a BPF program for seccomp(2). Pure: installs nothing.

The second wall behind the namespaces. Code that is tested needs files and memory. It needs no processes, no
programs, no sockets (those of virtual machines, AF_VSOCK, belong to no network namespace), and none of the
calls through which kernels tend to be broken.
"""

import errno
import platform
import struct
from dataclasses import dataclass
from functools import lru_cache

# linux/bpf_common.h, linux/seccomp.h, linux/audit.h
LOAD_WORD, JUMP_IF_EQUAL, JUMP_IF_GREATER_EQUAL, RETURN = 0x20, 0x15, 0x35, 0x06
NUMBER_OFFSET, ARCHITECTURE_OFFSET = 0, 4  # in struct seccomp_data
KILL_PROCESS, REFUSE, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
X32_CALLS = 0x40000000  # x86-64's second set of numbers for the same calls

# Numbers that all architectures share: those of newer calls.
COMMON = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "clone3": 435,
    "mount_setattr": 442,
    "memfd_secret": 447,
}


@dataclass(frozen=True)
class Machine:
    """An architecture: its AUDIT_ARCH number and those of the calls that are refused."""

    audit: int
    refused: dict[str, int]


MACHINES = {
    "x86_64": Machine(
        0xC000003E,
        {
            **COMMON,
            "shmget": 29,
            "socket": 41,
            "clone": 56,
            "fork": 57,
            "vfork": 58,
            "execve": 59,
            "semget": 64,
            "msgget": 68,
            "ptrace": 101,
            "pivot_root": 155,
            "chroot": 161,
            "mount": 165,
            "umount2": 166,
            "mq_open": 240,
            "add_key": 248,
            "request_key": 249,
            "keyctl": 250,
            "unshare": 272,
            "perf_event_open": 298,
            "setns": 308,
            "process_vm_readv": 310,
            "process_vm_writev": 311,
            "memfd_create": 319,
            "bpf": 321,
            "execveat": 322,
            "userfaultfd": 323,
        },
    ),
    "aarch64": Machine(
        0xC00000B7,
        {
            **COMMON,
            "umount2": 39,
            "mount": 40,
            "pivot_root": 41,
            "chroot": 51,
            "unshare": 97,
            "ptrace": 117,
            "mq_open": 180,
            "msgget": 186,
            "semget": 190,
            "shmget": 194,
            "socket": 198,
            "add_key": 217,
            "request_key": 218,
            "keyctl": 219,
            "clone": 220,
            "execve": 221,
            "perf_event_open": 241,
            "setns": 268,
            "process_vm_readv": 270,
            "process_vm_writev": 271,
            "memfd_create": 279,
            "bpf": 280,
            "execveat": 281,
            "userfaultfd": 282,
        },
    ),
}


@lru_cache(maxsize=1)
def filter_program() -> bytes | None:
    """The filter for this machine: calls of another architecture kill, refused ones fail with EPERM.

    None where the architecture's numbers are not known.
    """
    machine = MACHINES.get(platform.machine())
    return None if machine is None else program(machine)


def program(machine: Machine) -> bytes:
    """struct sock_filter, 8 bytes each: one comparison for each refused call, then allow, then refuse."""
    numbers = sorted(machine.refused.values())
    instructions = [
        (LOAD_WORD, 0, 0, ARCHITECTURE_OFFSET),
        (JUMP_IF_EQUAL, 1, 0, machine.audit),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD_WORD, 0, 0, NUMBER_OFFSET),
        (JUMP_IF_GREATER_EQUAL, len(numbers) + 1, 0, X32_CALLS),
        *((JUMP_IF_EQUAL, len(numbers) - place, 0, number) for place, number in enumerate(numbers)),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, REFUSE | errno.EPERM),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
