"""The sandbox: what a command gets and gives back, what it may not, and that nothing outlives us."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from agents import bench
from envs.verify import attacks, sandbox
from envs.verify.attacks import Attack, Host, alive, outlived
from envs.verify.sandbox import (
    MAX_COMMAND,
    MAX_STDERR,
    MAX_STDOUT,
    Entry,
    Execution,
    SandboxError,
    execute,
    pack,
    unavailable,
    unpack,
)

ROOT = Path(__file__).resolve().parent.parent
# As an ordinary user, who need not be able to read this folder or its Python: all is imported before the user changes.
SELFTEST_AS_NOBODY = """
import encodings.idna, os, sys
from envs.verify import attacks
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
sys.exit(attacks.selftest(as_json=True))
"""
SELFTEST = [sys.executable, "-m", "envs.verify.sandbox", "--selftest"]
WEIRD = ("a b", "a\nb", "-rf", "ü", "\udcff\udcfe", "*", "'\"", "x" * 255, "d/" + "y" * 200 + "/" + "z" * 200)
TREE = {
    "report.txt": Entry("file", 0o644, b"one\ntwo\n"),
    "empty": Entry("file", 0o600),
    "docs": Entry("directory", 0o750),
    "docs/run": Entry("file", 0o755, b"#!/bin/bash\necho ran\n"),
    "link": Entry("link", 0o777, b"docs/run"),
    "dangling": Entry("link", 0o777, b"/no where\xff"),
}
EXECUTE_AS = """
import encodings.idna, os, sys
from envs.verify.sandbox import Entry, execute
if os.geteuid() == 0 and sys.argv[1] == "ordinary":
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
for command in sys.argv[2:]:
    got = execute(command, {"f": Entry("file", 0o644, b"b\\na")})
    print((command, got.exit_code, got.stdout, got.stderr, got.tree, got.ended))
"""
needs_sandbox = pytest.mark.usefixtures("sandbox")


def same(execution: Execution) -> Execution:
    return replace(execution, seconds=0.0)


# --- what a command gets and gives back


@needs_sandbox
def test_output_exit_status_and_tree_come_back() -> None:
    got = execute("cat report.txt; echo oops >&2; echo new > docs/new; rm empty; exit 7", TREE)
    assert got.tree is not None
    assert (got.exit_code, got.stdout, got.stderr, got.ended) == (7, b"one\ntwo\n", b"oops\n", "exited")
    assert got.tree == {
        **{path: entry for path, entry in TREE.items() if path != "empty"},
        "docs/new": Entry("file", 0o644, b"new\n"),
    }
    assert 0 < got.seconds < 60


@needs_sandbox
def test_a_tree_comes_back_as_it_was_handed_in() -> None:
    tree = {name: Entry("file", 0o640, name.encode(errors="surrogateescape")) for name in WEIRD} | {
        "d": Entry("directory", 0o700),
        "d/" + "y" * 200: Entry("directory", 0o755),
        "big": Entry("file", 0o444, bytes(range(256)) * 20_000),
        "long": Entry("link", 0o777, b"t" * 300),
        "locked": Entry("directory", 0o555),
        "locked/in": Entry("file", 0o400, b"x"),
    }
    assert execute(":", tree).tree == tree
    assert execute(":", TREE).tree == TREE
    assert execute(":").tree == {}


@needs_sandbox
def test_equal_commands_give_equal_results() -> None:
    command = "ls -lan --time-style=full-iso . docs | grep -v '\\.\\.$'; find . -printf '%p %m %T@ %s\\n' | sort; id; env; date +%Z; umask; pwd"
    got = [same(execute(command, TREE)) for _ in range(3)]
    assert got[0] == got[1] == got[2]
    text = got[0].stdout.decode()
    assert (
        " 2023-11-14 22:13:20.000000000 +0000 docs" in text
        and " 1970-" not in text
        and "uid=65534" in text
        and "HOME=/box" in text
        and "0022\n/box\n" in text
    )


@needs_sandbox
def test_times_of_last_change_are_laid_out_and_do_not_come_back() -> None:
    tree = {
        name: Entry("file", 0o644, name.encode(), mtime=1_600_000_000 + 60 * place)
        for place, name in enumerate("bca")
    }
    tree["d"] = Entry("directory", 0o755, mtime=1_500_000_000)
    tree["l"] = Entry("link", 0o777, b"a", mtime=1_400_000_000)
    got = execute("ls -t; find . -newer b -type f | sort; stat -c '%n %Y' *; gzip -k a", tree)
    assert got.stdout.decode().split("\n") == [
        *("a", "c", "b", "d", "l"),
        *("./a", "./c"),
        *("a 1600000120", "b 1600000000", "c 1600000060", "d 1500000000", "l 1400000000", ""),
    ]
    assert got.stderr == b"" and got.tree is not None and set(got.tree) == {*tree, "a.gz"}
    assert {entry.mtime for entry in got.tree.values()} == {sandbox.MTIME}
    assert {path: entry for path, entry in got.tree.items() if path != "a.gz"} == tree


@needs_sandbox
def test_who_runs_it_makes_no_difference() -> None:
    commands = [
        "cat f > /dev/stdout",
        "sort f -o /dev/stdout",
        "sort f | tee /dev/stderr",
        "cat f | tee /dev/stdout | wc -l",
        "echo x >> /dev/fd/1",
        "cat /no/such > /proc/self/fd/2",
        "id; ls -lnR --time-style=+%s",
        "ls -ln /proc/self/fd | cut -d' ' -f1-4",
        "stat -L -c '%u %g %a %F' /dev/stdout /dev/stderr",
        "chmod 000 f; cat f",
        "ulimit -a; ulimit -aH",
    ]
    process = [sys.executable, "-c", EXECUTE_AS]
    got = [
        subprocess.run([*process, who, *commands], cwd=ROOT, capture_output=True, text=True, timeout=120)
        for who in ("this", "ordinary")
    ]
    assert [one.stderr for one in got] == ["", ""]
    assert got[0].stdout.splitlines() == got[1].stdout.splitlines()
    assert "denied" not in "".join(got[0].stdout.splitlines()[:6]) and len(got[0].stdout.splitlines()) == len(
        commands
    )


@needs_sandbox
def test_hard_links_are_counted_and_what_is_neither_file_nor_folder_is_other() -> None:
    got = execute("ln report.txt a; ln report.txt docs/b; mkfifo p; ln -s a s; ln s t", TREE).tree
    assert got is not None
    assert [got[path].links for path in ("report.txt", "a", "docs/b", "s", "t", "empty")] == [
        3,
        3,
        3,
        2,
        2,
        1,
    ]
    assert got["docs/b"].content == b"one\ntwo\n" and got["p"].kind == "other" and got["t"] == got["s"]
    assert got["s"].kind == "link" and got["s"].content == b"a"


@needs_sandbox
def test_what_was_made_unreadable_comes_back_with_its_modes() -> None:
    got = execute("chmod 000 report.txt docs/run docs; chmod 311 .", TREE).tree
    assert got is not None and {path: entry.mode for path, entry in got.items() if entry.kind != "link"} == {
        "report.txt": 0,
        "empty": 0o600,
        "docs": 0,
        "docs/run": 0,
    }
    assert got["docs/run"].content == TREE["docs/run"].content
    got = execute("chmod 000 .; exit 3", TREE).tree
    assert got == TREE


@needs_sandbox
def test_directories_made_unreadable_in_each_other_come_back_or_nothing_does() -> None:
    build = "for i in {1..%d}; do mkdir d; cd -P d; done; echo x > f; chmod 000 f; for i in {1..%d}; do cd -P ..; chmod 000 d; done"
    tree = execute(build % (20, 20)).tree
    assert tree is not None and len(tree) == 21 and {entry.mode for entry in tree.values()} == {0}
    assert tree["d/" * 20 + "f"].content == b"x\n"
    got = execute(build % (120, 120))
    assert (got.exit_code, got.ended, got.tree) == (0, "exited", None)


@needs_sandbox
@pytest.mark.parametrize(
    "make", ["for i in {1..17000}; do :>$i; done", "echo {1..17000} | xargs -n 2000 mkdir"]
)
def test_thousands_made_unreadable_take_no_time(make: str) -> None:
    got = execute(f"{make}; chmod 000 -- *", wall=20)
    assert (
        got.ended == "exited"
        and got.tree is not None
        and len(got.tree) == 17000
        and {entry.mode for entry in got.tree.values()} == {0}
    )


@needs_sandbox
def test_a_tree_that_takes_too_long_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "READ_BACK", 0.0)
    got = execute("echo done; exit 3", TREE)
    assert (got.stdout, got.exit_code, got.ended, got.tree) == (b"done\n", 3, "exited", None)


@needs_sandbox
@pytest.mark.parametrize("status", ["0", "1" * 4999, "9" * 30, "-1", "256", "done", "code 0", "", "7\ndone"])
def test_a_status_cannot_be_forged(status: str) -> None:
    got = execute(f"echo '{status}' > /proc/$PPID/fd/1; sleep 0.2; exit 9")
    assert (got.exit_code, got.ended) in (
        (None, "killed"),
        (9, "exited"),
    )  # the latter where the kernel keeps it from writing there


@pytest.mark.parametrize(
    "line", ["code 256", "code 1234", f"code {'1' * 5000}", "code -1", "code", "code x", "done"]
)
def test_only_an_exit_status_is_one(line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_bwrap(tmp_path, monkeypatch, f"echo ready >&0; read -r go; echo '{line}' >&0")
    got = execute("true", wall=5)
    assert (got.exit_code, got.ended) == (None, "killed")


@needs_sandbox
@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("false", 1),
        ("kill -SEGV $$", 139),
        ("kill -INT $$", 130),
        ("kill 0", 143),
        ("for s in {1..64}; do kill -$s 1; done; exit 5", 5),
        ("exit 300", 44),
        ("(", 2),
        ("no-such-program", 127),
        ("./report.txt", 126),
    ],
)
def test_exit_statuses_are_those_of_the_shell(command: str, status: int) -> None:
    if "INT" in command and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        pytest.skip("what started the tests ignores SIGINT, and so does every child")
    got = execute(command, TREE)
    assert (got.exit_code, got.ended) == (status, "exited")
    assert b"driver" not in got.stderr and b"coproc" not in got.stderr


@needs_sandbox
def test_the_command_is_handed_on_as_it_is() -> None:
    assert (
        execute("printf %s '\x01\x1b[2J\r\t\x7f\u2028é\udcff'").stdout
        == "\x01\x1b[2J\r\t\x7f\u2028é".encode() + b"\xff"
    )
    assert execute('echo "$0 $# $-"').stdout == b"bash 0 hBc\n"
    assert execute("echo 'a\nb'\\\n; # '").stdout == b"a\nb\n"
    assert execute("").exit_code == 0
    assert execute("wc -c").stdout == b"0\n"


@needs_sandbox
@pytest.mark.parametrize("command", ["touch x\0", ": " + "x" * MAX_COMMAND, "echo \ud800"])
def test_a_command_that_no_program_could_be_given_fails(command: str) -> None:
    got = execute(command, TREE)
    assert (got.exit_code, got.stdout, got.ended, got.tree) == (126, b"", "exited", TREE)
    assert got.stderr.startswith(b"bash: the command ")


@needs_sandbox
def test_the_longest_command_runs() -> None:
    assert execute(":" + " " * (MAX_COMMAND - 1)).exit_code == 0


@pytest.mark.parametrize("path", ["", "/etc/x", "../x", "a/../../x", "a\0b"])
def test_a_tree_must_stay_inside_itself(path: str) -> None:
    with pytest.raises(ValueError, match="must stay inside"):
        execute(":", {path: Entry("file", 0o644)})


def test_a_tree_holds_files_directories_and_links() -> None:
    with pytest.raises(ValueError, match="only files, directories and links"):
        execute(":", {"p": Entry("other", 0o644)})


@needs_sandbox
def test_a_tree_that_does_not_fit_is_our_mistake_and_no_failure_of_the_command() -> None:
    with pytest.raises(SandboxError, match="the file tree cannot be laid out"):
        execute(":", {"big": Entry("file", 0o644, bytes(17 << 20))})


# --- limits


@needs_sandbox
def test_what_is_left_running_ends_with_the_command() -> None:
    tag = secrets.token_hex(8)
    started = time.monotonic()
    got = execute(
        f"sleep 300 & setsid sleep 300 & (setsid -f bash -c 'sleep 300; : {tag}' &) ; echo done",
        TREE,
        wall=60,
    )
    assert (got.stdout, got.ended, got.tree) == (b"done\n", "exited", TREE)
    assert time.monotonic() - started < 30
    assert outlived(tag) == []


@needs_sandbox
@pytest.mark.parametrize(
    ("command", "ended"),
    [
        ("echo first; sleep 300", "timeout"),
        ("echo first; exec >&- 2>&-; sleep 300", "timeout"),
        ("echo first; kill -STOP -1; sleep 300", "timeout"),
        ("echo first; yes", "output"),
        ("echo first; yes >&2", "output"),
        ("echo first; kill -9 -1; sleep 300", "killed"),
        (
            "echo first; for i in {1..9}; do dd if=/dev/zero bs=200M 2>/dev/null | sleep 300 & done; wait",
            "killed",
        ),
        ("echo first; while :; do : > $((i++)); done", "killed"),
    ],
)
def test_how_a_command_is_ended(command: str, ended: str) -> None:
    tag = secrets.token_hex(8)
    got = execute(f"{command}\n: {tag}", TREE, wall=30 if ended == "killed" else 1)
    assert (got.ended, got.exit_code) == (ended, None)
    assert (
        got.stdout.startswith(b"first\n") and len(got.stdout) <= MAX_STDOUT and len(got.stderr) <= MAX_STDERR
    )
    assert got.seconds < 30
    assert outlived(tag) == []


@needs_sandbox
def test_output_up_to_the_limit_is_kept() -> None:
    got = execute(f"head -c {MAX_STDOUT} /dev/zero; head -c {MAX_STDERR + 9} /dev/zero >&2")
    assert (got.ended, len(got.stdout), len(got.stderr)) == ("exited", MAX_STDOUT, MAX_STDERR)
    assert execute(f"head -c {MAX_STDOUT + 1} /dev/zero").ended == "output"


@needs_sandbox
def test_a_tree_that_is_too_big_is_not_read() -> None:
    got = execute("for i in {1..400}; do truncate -s 16M $i; done; echo done")
    assert (got.stdout, got.exit_code, got.ended, got.tree) == (b"done\n", 0, "exited", None)


@needs_sandbox
def test_several_threads_at_once() -> None:
    with ThreadPoolExecutor(4) as pool:
        got = list(
            pool.map(
                lambda number: execute(f"cat n; exit {number}", {"n": Entry("file", 0o644, b"%d" % number)}),
                range(24),
            )
        )
    assert [(one.exit_code, one.stdout) for one in got] == [(number, b"%d" % number) for number in range(24)]


@needs_sandbox
def test_nothing_of_ours_stays_open() -> None:
    execute("true")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for command in ("true", "yes", "x\0", "kill -9 -1"):
        execute(command, TREE)
    with pytest.raises(SandboxError):
        execute(":", {"big": Entry("file", 0o644, bytes(17 << 20))})
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("name", "times"), [("memfd_create", 0), ("memfd_create", 1), ("pipe", 0), ("pipe", 1), ("fchown", 1)]
)
def test_too_few_descriptors_are_no_failure_of_the_command(
    name: str, times: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if name == "fchown" and os.geteuid() != 0:
        pytest.skip("only root hands its pipes over")
    with_bwrap(tmp_path, monkeypatch, "exit 1")
    before = len(list(Path("/proc/self/fd").iterdir()))
    works, calls = getattr(os, name), iter(range(9))

    def fails(*arguments: object) -> object:
        if next(calls) == times:
            raise OSError(errno.EMFILE, "Too many open files")
        return works(*arguments)

    monkeypatch.setattr(os, name, fails)
    with pytest.raises(SandboxError, match=r"the sandbox cannot be started: .*Too many open files") as caught:
        execute("true")
    assert not caught.value.lasting
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@needs_sandbox
def test_no_descriptor_left_at_all() -> None:
    script = """
import os, resource
from envs.verify.sandbox import SandboxError, execute
execute("true")
used = len(os.listdir("/proc/self/fd")) - 1
for more in range(16):
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, 4096))
    try:
        print(execute("true").ended)
    except SandboxError as error:
        print("Too many open files" in str(error))
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))
    assert len(os.listdir("/proc/self/fd")) - 1 == used
"""
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    said = process.stdout.split()
    assert (
        process.stderr == ""
        and len(said) == 16
        and said[0] == "True"
        and said[-1] == "exited"
        and set(said) == {"True", "exited"}
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


def test_the_filter_knows_its_machines() -> None:
    for machine in ("x86_64", "aarch64"):
        program = sandbox.system_call_filter(machine)
        assert len(program) % 8 == 0 and len(program) // 8 < 4096
    assert sandbox.system_call_filter("x86_64") != sandbox.system_call_filter("aarch64")
    with pytest.raises(SandboxError, match="no system-call filter for riscv64: use"):
        sandbox.system_call_filter("riscv64")


# --- where there is no sandbox


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """`unavailable` has not found out anything yet."""
    monkeypatch.setattr(sandbox, "_found", sandbox._Found())
    monkeypatch.setattr(sandbox, "SWITCHES", {})


def with_bwrap(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str | None) -> None:
    """Puts a program in the place of bubblewrap, or none."""
    for name in ("setpriv", "bash", "cat"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    if script is not None:
        (folder / "bwrap").write_text(f"#!/bin/bash\n{script}\n")
        (folder / "bwrap").chmod(0o755)
    folder.chmod(0o755)
    for parent in folder.parents[:3]:
        if parent.stat().st_uid == os.geteuid():
            parent.chmod(parent.stat().st_mode | 0o055)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("script", "wanted", "lasting"),
    [
        (None, "bubblewrap is not installed: apt-get install bubblewrap", True),
        (
            "echo 'bwrap: Unknown option --disable-userns' >&2; exit 1",
            "bubblewrap is too old (0.8 or newer is needed)",
            True,
        ),
        (
            "echo 'bwrap: No permissions to create new namespace' >&2; exit 1",
            "user namespaces are blocked: allow them",
            True,
        ),
        (
            "echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1",
            "user namespaces are blocked: allow them",
            True,
        ),
        (
            "echo 'bwrap: Creating new namespace failed: Resource temporarily unavailable' >&2; exit 1",
            "the sandbox cannot be started",
            False,
        ),
        (
            "echo strange >&2; exit 1",
            "the sandbox cannot be set up: run bwrap by hand to see why (strange)",
            False,
        ),
        ("exit 0", "the sandbox cannot be set up", False),
        ("echo ready >&0; exit 0", "the sandbox cannot be set up", False),
        ("echo ready >&0; read -r go; echo 'code 0' >&0", "the sandbox cannot be set up", False),
    ],
)
def test_one_line_names_what_is_missing(
    script: str | None, wanted: str, lasting: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_bwrap(tmp_path, monkeypatch, script)
    said = unavailable()
    assert said.startswith(wanted) and "\n" not in said
    assert unavailable() == said
    assert (sandbox._found.until == math.inf) == lasting


@needs_sandbox
@pytest.mark.usefixtures("fresh")
def test_a_failure_that_passes_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", refuse := Refuse())
        started = time.monotonic()
        assert unavailable() == "the sandbox cannot be started: [Errno 11] Resource temporarily unavailable"
        assert sandbox._found.until < time.monotonic() + 10 * (time.monotonic() - started)
        sandbox._found.until = math.inf  # so long as it holds, nothing is tried
        assert unavailable() and refuse.calls == 1
        sandbox._found.until = time.monotonic()
    assert unavailable() == ""
    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert unavailable() == "" and refuse.calls == 1


class Refuse:
    """In the place of what starts a process: says that there are too many."""

    calls = 0

    def __call__(self, *_: object, **__: object) -> None:
        self.calls += 1
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")


@pytest.mark.usefixtures("fresh")
def test_a_machine_without_a_filter_or_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.platform, "machine", lambda: "riscv64")
    if shutil.which("bwrap"):
        assert unavailable() == "no system-call filter for riscv64: use a machine with x86_64 or aarch64"
    monkeypatch.setattr(sandbox, "_found", sandbox._Found())
    monkeypatch.setattr(sys, "platform", "darwin")
    assert unavailable().startswith("commands are executed on Linux only")


@pytest.mark.parametrize("value", ["0", "1"])
def test_the_switch_that_blocks_is_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "kernel/osrelease"
    now = Path("/proc/sys", name).read_text().strip()
    monkeypatch.setattr(sandbox, "SWITCHES", {name: (now, value)})
    assert (
        str(sandbox.diagnosis(b"bwrap: whatever"))
        == f"user namespaces are blocked: sysctl -w kernel.osrelease={value}"
    )


def test_execute_says_so_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_bwrap(tmp_path, monkeypatch, None)
    with pytest.raises(SandboxError, match="bubblewrap is not installed: apt-get install bubblewrap"):
        execute("true")
    with_bwrap_that_fails = tmp_path / "fails"
    with_bwrap_that_fails.mkdir()
    with_bwrap(with_bwrap_that_fails, monkeypatch, "echo 'bwrap: Creating new namespace failed' >&2; exit 1")
    with pytest.raises(SandboxError, match="user namespaces are blocked"):
        execute("true")


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_the_selftest_says_so_in_one_line(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_bwrap(tmp_path, monkeypatch, None)
    process = subprocess.run([*SELFTEST, *flags], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (process.returncode, process.stdout, process.stderr) == (
        2,
        "",
        "error: bubblewrap is not installed: apt-get install bubblewrap\n",
    )


def test_tests_skip_with_the_reason_or_fail_where_a_sandbox_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_bwrap(tmp_path, monkeypatch, None)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-rs",
        "tests/test_sandbox.py",
        "-k",
        "test_the_longest_command_runs",
    ]
    skipped = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (
        skipped.returncode == 0
        and "1 skipped" in skipped.stdout
        and "bubblewrap is not installed" in skipped.stdout
    )
    failed = subprocess.run(
        [*command, "--require-sandbox"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert failed.returncode == 1 and "bubblewrap is not installed" in failed.stdout


# --- nothing outlives us

VICTIM = """
import sys, threading
from envs.verify.sandbox import execute
tag = sys.argv[1]
commands = [f"sleep 300; : {tag}", f"setsid -f bash -c 'sleep 300; : {tag}'; sleep 300", f"while :; do :; done; : {tag}"]
threads = [threading.Thread(target=execute, args=(command,), kwargs={"wall": 300}) for command in commands * 2]
print("started", flush=True)
for thread in threads:
    thread.start()
"""


def kill_a_run(delay: float) -> int:
    """Starts sandboxes, kills their owner `delay` seconds later without warning -> how many processes it had."""
    tag = secrets.token_hex(16)
    process = subprocess.Popen([sys.executable, "-c", VICTIM, tag], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"started\n"
    time.sleep(delay)
    count = len(alive(tag))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert outlived(tag) == [], f"after {delay} s"
    return count


@needs_sandbox
def test_a_killed_run_leaves_no_process() -> None:
    assert (
        kill_a_run(2.0) >= 1 + 6 * 3
    )  # itself, and for each command at least bubblewrap, process 1 and the shell


@needs_sandbox
@pytest.mark.slow
def test_a_run_killed_while_it_starts_leaves_no_process() -> None:
    for step in range(25):
        kill_a_run(0.004 * step)


@needs_sandbox
def test_a_command_does_not_start_before_it_hears_from_us() -> None:
    """The same for the moment that no timing hits: its owner is gone before the kernel knows that it should end with it."""
    tag = secrets.token_hex(8)
    run = sandbox._Run(shutil.which("bwrap") or "", pack(TREE), f"sleep 300; : {tag}".encode(), 60.0)
    run._read(30.0)
    assert run.answer == b"ready\n" and alive(tag)
    run.line.shutdown(sandbox.socket.SHUT_RDWR)
    assert run.process.wait(timeout=30) == 1
    assert outlived(tag) == []
    run.ours.close()


# --- the attacks, and whether their judge can tell


@needs_sandbox
@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [[*SELFTEST, "--json"], [sys.executable, "-c", SELFTEST_AS_NOBODY]],
    ids=["this user", "an ordinary user"],
)
def test_every_attack_is_contained(command: list[str]) -> None:
    if not shutil.which("perl", path="/usr/bin"):
        pytest.skip("perl is not installed, and some attacks are written in it: apt-get install perl-base")
    if command[1] == "-c" and os.geteuid() != 0:
        pytest.skip("only root can become another user, and this one is an ordinary user already")
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert process.stderr == ""
    outcomes = json.loads(process.stdout)
    assert [outcome for outcome in outcomes if not outcome["contained"]] == []
    assert process.returncode == 0
    assert len({outcome["name"] for outcome in outcomes}) == len(outcomes) >= 60
    assert {frozenset(outcome) for outcome in outcomes} == {frozenset({"name", "contained", "detail"})}


def attack(name: str) -> Attack:
    return next(attack for attack in attacks.attacks() if attack.name == name)


def stub(**fields: object) -> Callable[..., Execution]:
    """An executor that runs nothing and gives the same back for everything."""
    return lambda command, wall: replace(Execution(0, b"tried\n", b"", {}, "exited", 0.0), **fields)  # type: ignore[arg-type]


def judged(name: str, executor: Callable[..., Execution], host: Host) -> str:
    """Why the judge says that it was not contained; empty where it says that it was."""
    outcome = attacks.run(attack(name), host, executor)
    return "" if outcome.contained else outcome.detail


@pytest.fixture
def host() -> Iterator[Host]:
    with Host() as host:
        yield host


def test_every_attack_that_is_only_pretended_to_be_run_is_judged_uncontained(host: Host) -> None:
    for one in attacks.attacks():
        assert not attacks.run(one, host, stub(stdout=b"")).contained, one.name
        assert not attacks.run(one, host, stub(stdout=b"tried\n" + host.secret.encode())).contained, one.name


def test_the_judge_sees_what_came_back(host: Host) -> None:
    name = "read the planted file"
    secret = host.secret.encode()
    assert judged(name, stub(), host) == ""
    assert judged(name, stub(stdout=b"tried " + secret), host) == "the secret came back"
    assert judged(name, stub(stderr=secret), host) == "the secret came back"
    assert judged(name, stub(tree={"x": Entry("file", 0o644, secret)}), host) == "the secret came back"
    assert judged(name, stub(tree={host.secret: Entry("file", 0o644)}), host) == "the secret came back"
    assert "BREACH: step 1" in judged(name, stub(stdout=b"tried\nBREACH: step 1\n"), host)
    assert judged(name, stub(ended="timeout"), host) == "it ended otherwise than it should: timeout"
    assert judged(name, stub(stdout=b""), host).startswith("it was not tried")
    assert judged(name, stub(stdout=b"tried" * MAX_STDOUT), host) == "more output than is allowed"
    assert judged(
        "links to the host's files", stub(tree={name: Entry("file", 0o644) for name in "lsru"}), host
    )
    assert judged("a NUL byte", stub(), host) == "exit status 0, not 126"


def test_the_judge_sees_what_changed_on_the_host(host: Host) -> None:
    def executor(harm: Callable[[], object]) -> Callable[..., Execution]:
        def execute(command: str, wall: float) -> Execution:
            harm()
            return stub()(command, wall)

        return execute

    def crash() -> None:
        raise ValueError("too many digits")

    def connect() -> None:
        with attacks.socket.create_connection(host.tcp.getsockname()) as connection:
            connection.recv(100)

    name = "mount"
    assert (
        judged(name, executor(lambda: (host.folder / "new").touch()), host)
        == "the planted file or its folder was changed"
    )
    (host.folder / "new").unlink()
    assert judged(name, executor(lambda: None), host) == ""
    assert judged(name, executor(crash), host) == "it raised ValueError: too many digits"
    os.kill(host.decoy.pid, signal.SIGSTOP)
    assert judged(name, executor(lambda: time.sleep(0.2)), host) == "the planted process was ended or stopped"
    os.kill(host.decoy.pid, signal.SIGCONT)
    assert judged(name, executor(lambda: time.sleep(0.2)), host) == ""
    assert judged(name, executor(connect), host) == "somebody connected to a planted socket"
    host.connections = 0
    host.decoy.kill()
    host.decoy.wait()
    assert judged(name, executor(lambda: None), host) == "the planted process was ended or stopped"


def test_the_judge_sees_what_stays_alive(host: Host) -> None:
    left: list[subprocess.Popen[bytes]] = []

    def executor(command: str, wall: float) -> Execution:
        left.append(subprocess.Popen(["sleep", f"60.{command.rpartition('# ')[2]}"]))
        time.sleep(0.1)  # until it has its command line
        return stub()(command, wall)

    try:
        assert judged("mount", executor, host) == "1 processes outlived it"
    finally:
        for process in left:
            process.kill()
            process.wait()


def test_the_judge_sees_what_is_taken_and_how_long(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "MAX_LOSS", -1)
    assert "MiB of memory" in judged("fork bomb", stub(), host)
    monkeypatch.setattr(attacks, "SLACK", -attack("mount").wall - 1)
    assert judged("mount", stub(), host).startswith("it took")


def test_the_loss_is_the_worst_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([(100, 100), (90, 100), (40, 70), (100, 100)])
    last = threading.Event()

    def free() -> tuple[int, int]:
        try:
            return next(readings)
        except StopIteration:
            last.set()
            return 100, 100

    monkeypatch.setattr(attacks, "free", free)
    with attacks.watched() as loss:
        last.wait(10)
    assert loss == [60, 30]


# --- the benchmark


@needs_sandbox
def test_the_benchmark_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["sandbox", "--commands", "3", "--threads", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["benchmark"], result["commands"], result["threads"]) == ("sandbox", 3, 2)
    assert set(result["median_ms"]) == set(result["p95_ms"]) == {"sandbox", "bash"}
    assert min(*result["median_ms"].values(), *result["p95_ms"].values(), result["commands_per_second"]) > 0


@needs_sandbox
def test_the_benchmark_prints_three_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["sandbox", "--commands", "1", "--threads", "1"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "sandbox",
        "bash",
        "sandbox",
    ]


@pytest.mark.parametrize("flags", [["--commands", "0"], ["--threads", "-1"]])
def test_the_benchmark_refuses_what_is_out_of_range(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["sandbox", *flags]) == 2
    assert f"{' '.join(flags)}: must be 1 or more" in capsys.readouterr().err


@pytest.mark.usefixtures("fresh")
def test_the_benchmark_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_bwrap(tmp_path, monkeypatch, None)
    assert bench.main(["sandbox"]) == 2
    assert capsys.readouterr().err == "error: bubblewrap is not installed: apt-get install bubblewrap\n"
