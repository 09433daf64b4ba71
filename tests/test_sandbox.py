"""The sandbox: what a command gets and gives back."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sandboxes import ROOT, TREE, needs_sandbox, with_bwrap

from envs.verify.sandbox import run as run_module
from envs.verify.sandbox.archive import MTIME, Entry
from envs.verify.sandbox.errors import SandboxError
from envs.verify.sandbox.run import MAX_COMMAND, Execution, execute

WEIRD = ("a b", "a\nb", "-rf", "ü", "\udcff\udcfe", "*", "'\"", "x" * 255, "d/" + "y" * 200 + "/" + "z" * 200)
EXECUTE_AS = """
import encodings.idna, os, sys
from envs.verify.sandbox.archive import Entry
from envs.verify.sandbox.run import execute
if os.geteuid() == 0 and sys.argv[1] == "ordinary":
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
for command in sys.argv[2:]:
    got = execute(command, {"f": Entry("file", 0o644, b"b\\na")})
    print((command, got.exit_code, got.stdout, got.stderr, got.tree, got.ended))
"""


def same(execution: Execution) -> Execution:
    return replace(execution, seconds=0.0)


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
    listing = (
        "ls -lan --time-style=full-iso . docs | grep -v '\\.\\.$'; find . -printf '%p %m %T@ %s\\n' | sort"
    )
    command = f"{listing}; id; env; date +%Z; umask; pwd"
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
    assert {entry.mtime for entry in got.tree.values()} == {MTIME}
    assert {path: entry for path, entry in got.tree.items() if path != "a.gz"} == tree


@pytest.mark.slow
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


@pytest.mark.slow
@needs_sandbox
def test_directories_made_unreadable_in_each_other_come_back_or_nothing_does() -> None:
    build = (
        "for i in {1..%d}; do mkdir d; cd -P d; done; echo x > f; chmod 000 f; "
        "for i in {1..%d}; do cd -P ..; chmod 000 d; done"
    )
    tree = execute(build % (20, 20)).tree
    assert tree is not None and len(tree) == 21 and {entry.mode for entry in tree.values()} == {0}
    assert tree["d/" * 20 + "f"].content == b"x\n"
    got = execute(build % (120, 120))
    assert (got.exit_code, got.ended, got.tree) == (0, "exited", None)


@pytest.mark.slow
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
    monkeypatch.setattr(run_module, "SEND_BACK", 0.0)
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
