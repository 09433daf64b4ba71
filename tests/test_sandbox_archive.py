"""The archive that comes back is not trusted, and the system-call filter."""

from __future__ import annotations

import random
import struct
import tarfile
from io import BytesIO

import pytest
from sandboxes import TREE

from envs.verify.sandbox.archive import Entry, pack, unpack
from envs.verify.sandbox.errors import SandboxError
from envs.verify.sandbox.seccomp import (
    ARCHITECTURES,
    NEWEST_CALL,
    SYSTEM_CALLS,
    refused_calls,
    system_call_filter,
)

# --- the archive that comes back is not trusted


def archive(*members: tarfile.TarInfo) -> bytes:
    file = BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for member in members:
            tar.addfile(member, BytesIO(bytes(member.size)))
    return file.getvalue()


def test_what_is_packed_is_unpacked() -> None:
    packed = pack(TREE)
    assert unpack(packed + bytes(-len(packed) % 10240)) == TREE


def test_no_archive_however_broken_does_harm() -> None:
    good = archive(*(tarfile.TarInfo(f"./{name}") for name in ("a", "b" * 300)))
    assert set(unpack(good) or {}) == {"a", "b" * 300}
    for end in range(0, len(good), 100):
        unpack(good[:end])
    generator = random.Random(0)
    for _ in range(2000):
        broken = bytearray(good)
        for _ in range(3):
            broken[generator.randrange(2048)] = generator.randrange(256)
        unpack(bytes(broken))
    for junk in (
        b"",
        b"x",
        bytes(512),
        b"\xff" * 2048,
        b"1 a\0\0",
        good + b"junk",
        good + b"0 a\0\0",
        good + b"9 a\0\0" + good,
    ):
        unpack(junk)
    assert unpack(b"") is None and unpack(good[:600]) is None
    assert unpack(good + b"7 a\0\0" + good) == {"a": Entry("file", 7), "b" * 300: Entry("file", 0o644)}
    assert unpack(good + b"7 a\0\0" + good + b"incomplete\n") is None


def test_names_that_lead_out_of_the_tree_are_only_names() -> None:
    link = tarfile.TarInfo("./l")
    link.type, link.linkname = tarfile.LNKTYPE, "./../../etc/passwd"
    assert unpack(archive(link)) is None  # a hard link to what is not there
    assert set(unpack(archive(tarfile.TarInfo("./../../etc/passwd"))) or {}) == {"../../etc/passwd"}


# --- the filter


NAMESPACES = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)  # CLONE_NEW*
ALLOWED, KILLED, EPERM, ENOSYS, EAFNOSUPPORT = "allowed", "killed", 1, 38, 97


def filtered(machine: str, number: int, *arguments: int, architecture: int | None = None) -> str | int:
    """What the filter says to a system call, as the kernel would run it: an error number where it refuses."""
    program = list(struct.iter_unpack("=HBBI", system_call_filter(machine)))
    padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<iIQ6Q", number, architecture or ARCHITECTURES[machine], 0, *padded)
    accumulator, position = 0, 0
    while True:
        code, then, otherwise, value = program[position]
        position += 1
        if code == 0x06:
            return {0x7FFF0000: ALLOWED, 0x80000000: KILLED}.get(value, value & 0xFFFF)
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
            continue
        holds = {0x15: accumulator == value, 0x25: accumulator > value, 0x45: accumulator & value != 0}[code]
        position += then if holds else otherwise


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_what_the_filter_says_to_each_call(machine: str) -> None:
    seen = set()
    for name, call in SYSTEM_CALLS.items():
        if machine not in call.numbers:
            continue
        number = call.numbers[machine]
        seen.add(number)
        wanted = {"refused": EPERM, "absent": ENOSYS, "allowed": ALLOWED}.get(call.rule)
        if wanted is not None:
            assert filtered(machine, number) == wanted, name
        else:
            assert name in ("clone", "ioctl", "socket", "socketpair")
    assert len(refused_calls(machine)) >= 60
    for number in set(range(NEWEST_CALL + 1)) - seen:
        assert filtered(machine, number) == ALLOWED
    assert filtered(machine, NEWEST_CALL + 1) == ENOSYS
    assert filtered(machine, 0, architecture=0x40000003) == KILLED  # 32-bit x86
    if machine == "x86_64":
        assert filtered(machine, 0x40000000 + 39) == KILLED


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_what_the_filter_says_by_the_arguments(machine: str) -> None:
    clone, ioctl = SYSTEM_CALLS["clone"].numbers[machine], SYSTEM_CALLS["ioctl"].numbers[machine]
    assert filtered(machine, clone, 0x1200011) == ALLOWED  # a fork
    for flag in NAMESPACES:
        assert filtered(machine, clone, flag | 17) == EPERM
    assert filtered(machine, ioctl, 0, 0x5401) == ALLOWED
    assert filtered(machine, ioctl, 0, 0x5412) == filtered(machine, ioctl, 0, 0x541C) == EPERM
    for name in ("socket", "socketpair"):
        number = SYSTEM_CALLS[name].numbers[machine]
        assert filtered(machine, number, 1) == ALLOWED
        for family in (2, 10, 16, 17, 40):
            assert filtered(machine, number, family) == EAFNOSUPPORT


def test_the_filter_knows_its_machines() -> None:
    for machine in ("x86_64", "aarch64"):
        program = system_call_filter(machine)
        assert len(program) % 8 == 0 and len(program) // 8 < 4096
    assert system_call_filter("x86_64") != system_call_filter("aarch64")
    with pytest.raises(SandboxError, match="no system-call filter for riscv64: use"):
        system_call_filter("riscv64")
