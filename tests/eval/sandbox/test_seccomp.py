"""The filter refuses what it lists and nothing else, by a simulation of the few instructions that it has."""

import errno
import struct

import pytest

from eval.sandbox.seccomp import (
    ALLOW,
    JUMP_IF_EQUAL,
    JUMP_IF_GREATER_EQUAL,
    KILL_PROCESS,
    LOAD_WORD,
    MACHINES,
    REFUSE,
    RETURN,
    X32_CALLS,
    Machine,
    program,
)


def verdict(filters: bytes, number: int, architecture: int) -> int:
    """What the kernel would do: cBPF over struct seccomp_data."""
    data = {0: number, 4: architecture}
    instructions = list(struct.iter_unpack("=HBBI", filters))
    at, accumulator = 0, 0
    while True:
        code, if_true, if_false, value = instructions[at]
        at += 1
        if code == LOAD_WORD:
            accumulator = data[value]
        elif code == JUMP_IF_EQUAL:
            at += if_true if accumulator == value else if_false
        elif code == JUMP_IF_GREATER_EQUAL:
            at += if_true if accumulator >= value else if_false
        else:
            assert code == RETURN
            return int(value)


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_exactly_the_listed_calls_are_refused(machine: Machine) -> None:
    filters = program(machine)
    refused = {
        number for number in range(1_000) if verdict(filters, number, machine.audit) == REFUSE | errno.EPERM
    }
    assert refused == set(machine.refused.values())
    assert verdict(filters, 0, machine.audit) == ALLOW


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_other_numberings_are_no_way_around(machine: Machine) -> None:
    filters = program(machine)
    for number in (0, *machine.refused.values()):
        assert verdict(filters, X32_CALLS + number, machine.audit) == REFUSE | errno.EPERM
        assert verdict(filters, number, machine.audit ^ 1) == KILL_PROCESS
