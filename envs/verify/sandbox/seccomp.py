"""The system-call filter, as a program in the kernel's classic BPF that bubblewrap loads.

Which calls are refused is in `system_calls.txt`. All that are newer than `NEWEST_CALL` are absent. Calls of
another architecture (32-bit, x32) kill the process.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Literal, NamedTuple

from envs.verify.sandbox.errors import SandboxError

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # the kernel's AUDIT_ARCH numbers
NEWEST_CALL = 456  # calls with higher numbers do not exist for the command
EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97
X32 = 0x40000000  # set in the numbers of x32 calls
NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
TIOCSTI, TIOCLINUX = 0x5412, 0x541C  # type into a terminal, as its user would

# Instructions: BPF_LD|W|ABS, BPF_JMP|JEQ, JGT, JSET with a constant, BPF_RET.
LOAD, IF_EQUAL, IF_GREATER, IF_ANY_BIT, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
# Offsets in what the kernel hands to the filter. An argument has 8 bytes, its low half first.
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
SECCOMP_ALLOW, SECCOMP_ERRNO, SECCOMP_KILL = 0x7FFF0000, 0x00050000, 0x80000000


class SystemCall(NamedTuple):
    """A row of `system_calls.txt`.

    Attributes:
        numbers: machine -> number; a machine that has no such call is left out.
    """

    numbers: dict[str, int]
    rule: Literal["refused", "absent", "examined", "allowed"]


def read_table(text: str) -> dict[str, SystemCall]:
    """Name -> row."""
    table = {}
    for line in text.splitlines():
        row = line.partition("#")[0].split()
        if not row:
            continue
        name, *columns, rule = row
        numbers = {}
        for machine, column in zip(ARCHITECTURES, columns, strict=True):
            if column != "-":
                numbers[machine] = int(column)
        table[name] = SystemCall(numbers, rule)  # type: ignore[arg-type]
    return table


SYSTEM_CALLS = read_table(Path(__file__).with_name("system_calls.txt").read_text(encoding="utf-8"))


def number_of(name: str, machine: str) -> int | None:
    """The number of a system call in `system_calls.txt`, None where the machine has no such call."""
    return SYSTEM_CALLS[name].numbers.get(machine)


def refused_calls(machine: str) -> dict[str, int]:
    """Name -> number of each call that is refused whatever its arguments."""
    found = {}
    for name, call in SYSTEM_CALLS.items():
        if call.rule == "refused" and machine in call.numbers:
            found[name] = call.numbers[machine]
    return found


def system_call_filter(machine: str) -> bytes:
    """The program, 8 bytes an instruction.

    Raises:
        SandboxError: the numbers of this machine's system calls are not known here.
    """
    if machine not in ARCHITECTURES:
        known = " or ".join(ARCHITECTURES)
        raise SandboxError(f"no system-call filter for {machine}: use a machine with {known}", lasting=True)
    program = [
        _step(LOAD, ARCHITECTURE),
        _step(IF_EQUAL, ARCHITECTURES[machine], 1, 0),
        KILL,
        _step(LOAD, NUMBER),
    ]
    if machine == "x86_64":
        program += [_step(IF_ANY_BIT, X32, 0, 1), KILL]
    program += [_step(IF_GREATER, NEWEST_CALL, 0, 1), _fail(ENOSYS)]
    program += [_step(IF_EQUAL, SYSTEM_CALLS["clone3"].numbers[machine], 0, 1), _fail(ENOSYS)]
    for number in refused_calls(machine).values():
        program += [_step(IF_EQUAL, number, 0, 1), _fail(EPERM)]

    no_namespace = [_step(IF_ANY_BIT, NAMESPACES, 0, 1), _fail(EPERM), ALLOW]
    program += _on_argument("clone", machine, 0, no_namespace)
    no_typing = [_step(IF_EQUAL, TIOCSTI, 1, 0), _step(IF_EQUAL, TIOCLINUX, 0, 1), _fail(EPERM), ALLOW]
    program += _on_argument("ioctl", machine, 1, no_typing)
    unix_only = [_step(IF_EQUAL, socket.AF_UNIX, 1, 0), _fail(EAFNOSUPPORT), ALLOW]
    program += _on_argument("socket", machine, 0, unix_only)
    program += _on_argument("socketpair", machine, 0, unix_only)
    return b"".join([*program, ALLOW])


def _step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    """One instruction; a test skips `then` or `otherwise` instructions."""
    return struct.pack("=HBBI", code, then, otherwise, value)


def _fail(error: int) -> bytes:
    return _step(RETURN, SECCOMP_ERRNO | error)


ALLOW, KILL = _step(RETURN, SECCOMP_ALLOW), _step(RETURN, SECCOMP_KILL)


def _on_argument(name: str, machine: str, index: int, test: list[bytes]) -> list[bytes]:
    """Runs `test`, which must end, only for this call, with the low half of an argument loaded."""
    body = [_step(LOAD, ARGUMENTS + 8 * index), *test]
    return [_step(IF_EQUAL, SYSTEM_CALLS[name].numbers[machine], 0, len(body)), *body]
