"""The sandbox: its limits, and that nothing outlives us."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sandboxes import ROOT, TREE, needs_sandbox, with_bwrap

from envs.verify.attacks.host import alive, outlived
from envs.verify.sandbox import run as run_module
from envs.verify.sandbox.archive import Entry, pack
from envs.verify.sandbox.errors import SandboxError
from envs.verify.sandbox.run import MAX_STDERR, MAX_STDOUT, execute


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
        pytest.param("echo first; exec >&- 2>&-; sleep 300", "timeout", marks=pytest.mark.slow),
        pytest.param("echo first; kill -STOP -1; sleep 300", "timeout", marks=pytest.mark.slow),
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
from envs.verify.sandbox.errors import SandboxError
from envs.verify.sandbox.run import execute
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


# --- nothing outlives us


VICTIM = """
import sys, threading
from envs.verify.sandbox.run import execute
tag = sys.argv[1]
commands = [
    f"sleep 300; : {tag}",
    f"setsid -f bash -c 'sleep 300; : {tag}'; sleep 300",
    f"while :; do :; done; : {tag}",
]
threads = []
for command in commands * 2:
    threads.append(threading.Thread(target=execute, args=(command,), kwargs={"wall": 300}))
print("started", flush=True)
for thread in threads:
    thread.start()
"""


def kill_a_run(delay: float) -> int:
    """Starts sandboxes, kills their owner `delay` seconds later -> how many processes it had."""
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


@pytest.mark.slow
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
    """As above, for a moment that no timing hits: we are gone before the kernel knows to end it with us."""
    tag = secrets.token_hex(8)
    run = run_module._Run(shutil.which("bwrap") or "", pack(TREE), f"sleep 300; : {tag}".encode(), 60.0)
    run._read(30.0)
    assert run.answer == b"ready\n" and alive(tag)
    run.line.shutdown(socket.SHUT_RDWR)
    assert run.process.wait(timeout=30) == 1
    assert outlived(tag) == []
    run.ours.close()
