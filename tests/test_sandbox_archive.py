"""The archive that comes back is not trusted, and the system-call filter."""

from __future__ import annotations

import random
import tarfile
from io import BytesIO

import pytest
from sandboxes import TREE

from envs.verify.sandbox.archive import Entry, pack, unpack
from envs.verify.sandbox.errors import SandboxError
from envs.verify.sandbox.seccomp import system_call_filter

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


def test_the_filter_knows_its_machines() -> None:
    for machine in ("x86_64", "aarch64"):
        program = system_call_filter(machine)
        assert len(program) % 8 == 0 and len(program) // 8 < 4096
    assert system_call_filter("x86_64") != system_call_filter("aarch64")
    with pytest.raises(SandboxError, match="no system-call filter for riscv64: use"):
        system_call_filter("riscv64")
