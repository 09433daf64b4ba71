"""The self-test: every attack is contained, and its judge can tell when one is not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sandboxes import ROOT, needs_sandbox, with_bwrap

from agents import selftest
from agents.cli.command import run_command
from envs.verify.attacks import host as host_module
from envs.verify.attacks import judge
from envs.verify.attacks.host import Host, watched
from envs.verify.attacks.table import Attack, attacks_here
from envs.verify.sandbox.archive import Entry
from envs.verify.sandbox.run import MAX_STDOUT, Execution

SELFTEST = [sys.executable, "-m", "agents.selftest"]
# All is imported before the user changes: an ordinary user may be unable to read this folder or its Python.
SELFTEST_AS_NOBODY = """
import encodings.idna, os, sys
from agents import selftest
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
sys.exit(selftest.main(selftest.Config(json=True)))
"""


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


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_the_selftest_says_so_in_one_line(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_bwrap(tmp_path, monkeypatch, None)
    assert run_command(selftest.Config, selftest.main, flags) == 2
    assert capsys.readouterr() == ("", "error: bubblewrap is not installed: apt-get install bubblewrap\n")


def attack(name: str) -> Attack:
    return next(attack for attack in attacks_here() if attack.name == name)


def stub(**fields: object) -> Callable[..., Execution]:
    """An executor that runs nothing and gives the same back for everything."""
    return lambda command, wall: replace(Execution(0, b"tried\n", b"", {}, "exited", 0.0), **fields)  # type: ignore[arg-type]


def judged(name: str, executor: Callable[..., Execution], host: Host) -> str:
    """Why the judge says that it was not contained; empty where it says that it was."""
    outcome = judge.run(attack(name), host, executor)
    return "" if outcome.contained else outcome.detail


@pytest.fixture
def host() -> Iterator[Host]:
    with Host() as host:
        yield host


def test_every_attack_that_is_only_pretended_to_be_run_is_judged_uncontained(host: Host) -> None:
    for one in attacks_here():
        assert not judge.run(one, host, stub(stdout=b"")).contained, one.name
        assert not judge.run(one, host, stub(stdout=b"tried\n" + host.secret.encode())).contained, one.name


def test_the_judge_sees_what_came_back(host: Host) -> None:
    name = "read the planted file"
    secret = host.secret.encode()
    assert judged(name, stub(), host) == ""
    assert judged(name, stub(stdout=b"tried " + secret), host) == "the secret came back"
    assert judged(name, stub(stderr=secret), host) == "the secret came back"
    assert judged(name, stub(tree={"x": Entry("file", 0o644, secret)}), host) == "the secret came back"
    assert judged(name, stub(tree={host.secret: Entry("file", 0o644)}), host) == "the secret came back"
    assert "BREACH: step 1" in judged(name, stub(stdout=b"tried\nBREACH: step 1\n"), host)
    assert judged(name, stub(ended="timeout"), host) == "it ended in a way that is not allowed: timeout"
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
        with socket.create_connection(host.tcp.getsockname()) as connection:
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
    monkeypatch.setattr(judge, "MAX_LOSS", -1)
    assert "MiB of memory" in judged("fork bomb", stub(), host)
    monkeypatch.setattr(judge, "SLACK", -attack("mount").wall - 1)
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

    monkeypatch.setattr(host_module, "free", free)
    with watched() as loss:
        last.wait(10)
    assert loss == [60, 30]
