"""Runs one shell command in a sandbox of its own and says what came of it.

Each command has fresh namespaces (user, mount, process, network, host name, IPC), no capability, a
system-call filter, and little to write to: 16 MiB in /box, 4 MiB in /tmp and 1 MiB in /dev/shm, all in
memory.

The driver, `driver.sh`, is process 1. It lays the file tree out, runs the command, kills whatever is left,
and sends the tree back. It talks to us over a socket: `ready`, our `go`, `code N`, and the archive of the
tree.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import select
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, replace
from typing import Literal

from envs.verify.sandbox.archive import Entry, Tree, pack, unpack
from envs.verify.sandbox.bubblewrap import NOBODY, command_line
from envs.verify.sandbox.errors import NOT_INSTALLED, SandboxError, diagnosis
from envs.verify.sandbox.seccomp import system_call_filter
from envs.verify.sandbox.watch import first_child, over_the_limits

MAX_STDOUT = 64 * 1024  # bytes; the command is killed at the first byte beyond
MAX_STDERR = 4 * 1024  # bytes that are kept; the command is killed beyond MAX_STDOUT
MAX_TREE = 24 << 20  # bytes of the archive that comes back
MAX_COMMAND = 128 * 1024 - 1  # bytes of one argument: the kernel's own limit
SETUP = 30.0  # seconds that setting up may take on a busy machine
SEND_BACK = 4.0  # seconds that sending the tree back may take
GIVE_UP = 5.0  # seconds beyond the wall clock after which the driver stops by itself
WATCH = 0.05  # seconds between two looks at the limits on all processes together
NOT_RUN = 126  # the shell's exit status for a command that cannot be run

Ended = Literal["exited", "timeout", "output", "killed"]
Stopped = Literal["line", "end", "timeout", "output", "killed"]


@dataclass(frozen=True)
class Execution:
    """What came of one command.

    Attributes:
        exit_code: 128 + n where signal n ended it; None where it did not end by itself.
        stdout: at most MAX_STDOUT bytes.
        stderr: at most MAX_STDERR bytes.
        tree: /box afterwards, without sockets. None where it is too big or cannot be sent within SEND_BACK
            seconds (unreadable too deep down, or beyond the longest path), and where the command did not
            end by itself.
        ended: `exited`, or what stopped it: `timeout` (the wall clock), `output` (too much of it), or
            `killed`. The last means too much memory, too many files, or a command that killed or wrote to
            the shell that waits for it.
        seconds: wall time, setting up included.
    """

    exit_code: int | None
    stdout: bytes
    stderr: bytes
    tree: dict[str, Entry] | None
    ended: Ended
    seconds: float


def execute(command: str, tree: Tree = {}, *, wall: float = 5.0) -> Execution:  # noqa: B006 - never written to
    """Runs `bash --noprofile --norc -c command` in a fresh sandbox, in /box, which holds `tree`.

    May be called from several threads at once. They must live until it returns: the kernel ends a sandbox
    with the thread that made it. A command that no program can be given (a NUL byte, 128 KiB or more, half
    a surrogate pair) is not run and fails with exit code 126.

    Args:
        command: the text as the model wrote it, control characters included.
        tree: files, directories and links. They belong to the user who runs the command.
        wall: seconds that the command may take, not counting those for setting up.

    Raises:
        SandboxError: the sandbox could not be set up.
        ValueError: `tree` holds an absolute path, `..`, or an entry of kind `other`.
    """
    started = time.monotonic()
    archive = pack(tree)
    text, refusal = _argument(command)
    if refusal:
        stderr = f"bash: {refusal}\n".encode()
        return Execution(NOT_RUN, b"", stderr, dict(tree), "exited", time.monotonic() - started)
    bwrap = shutil.which("bwrap")
    if not bwrap:
        raise SandboxError(NOT_INSTALLED, lasting=True)
    with _Run(bwrap, archive, text, wall) as run:
        result = run.result()
    return replace(result, seconds=time.monotonic() - started)


def _argument(command: str) -> tuple[bytes, str]:
    """The command as an argument of a program, and why it cannot be one, if so."""
    try:
        text = command.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return b"", "the command is not text"
    if b"\0" in text:
        return b"", "the command holds a NUL byte"
    if len(text) > MAX_COMMAND:
        return b"", "the command is too long"
    return text, ""


class _Run:
    """One sandbox: its process, its output as far as it was read, and the line to its driver."""

    def __init__(self, bwrap: str, archive: bytes, command: bytes, wall: float):
        self.wall = wall
        self.stdout, self.stderr, self.answer = bytearray(), bytearray(), bytearray()
        self.poll = select.poll()
        self.open: dict[int, bytearray] = {}  # descriptor -> where what is read from it goes
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            try:
                self.line, their_line = socket.socketpair()
                ours.enter_context(self.line)
                theirs.enter_context(their_line)
                their_stdout = self._pipe(self.stdout, ours, theirs)
                their_stderr = self._pipe(self.stderr, ours, theirs)
                filter_fd = _memory_file(theirs, system_call_filter(platform.machine()))
                tree_fd = _memory_file(theirs, archive)
                self.process = subprocess.Popen(
                    command_line(bwrap, filter_fd, tree_fd, wall + GIVE_UP, command),
                    stdin=their_line.fileno(),
                    stdout=their_stdout,
                    stderr=their_stderr,
                    pass_fds=(filter_fd, tree_fd),
                    # For setpriv to find bubblewrap. The command does not see it.
                    env={"PATH": os.environ.get("PATH", os.defpath)},
                    cwd="/",
                    start_new_session=True,  # Ctrl-C reaches only us, and we end it
                )
            except OSError as error:
                raise SandboxError(f"the sandbox cannot be started: {error}") from error
            self.ours = ours.pop_all()
        self.open[self.line.fileno()] = self.answer
        for fd in self.open:
            self.poll.register(fd, select.POLLIN)

    def _pipe(self, buffer: bytearray, ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> int:
        """Makes a pipe whose content goes to `buffer` -> the end to write to."""
        reading, writing = os.pipe()
        ours.callback(os.close, reading)
        theirs.callback(os.close, writing)
        self.open[reading] = buffer
        if os.geteuid() == 0:  # an ordinary user owns it already; only an owner can open /dev/stdout
            os.fchown(writing, NOBODY, NOBODY)
        return writing

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # process 1 of the sandbox dies with it, and all others with process 1
        self.process.wait()
        self.ours.close()

    def result(self) -> Execution:
        """Lets the command run and waits for its end. `seconds` is left for the caller to fill in.

        Raises:
            SandboxError: the driver never said that it was ready.
        """
        if self._read(SETUP) != "line" or self.answer != b"ready\n":
            self.process.kill()
            raise diagnosis(bytes(self.stderr))
        init = first_child(self.process.pid)
        self.stderr.clear()
        self.answer.clear()
        with contextlib.suppress(OSError):  # the driver is gone already, which is seen below
            self.line.send(b"go\n")
        stopped = self._read(self.wall, init)

        code, tree = None, None
        status = re.match(rb"code (\d{0,3})\n", self.answer)
        if status:
            # All processes of the command are dead: what follows is the tree, and what is left in the pipes.
            if status[1] and int(status[1]) <= 255:
                code = int(status[1])
            stopped = self._read(SEND_BACK, to_the_end=True)
            if stopped == "end":
                tree = unpack(bytes(self.answer[status.end() :]))
        self.process.kill()

        ended: Ended = "exited" if code is not None else "killed"
        if max(len(self.stdout), len(self.stderr)) > MAX_STDOUT:
            ended, code, tree = "output", None, None
        elif not status and stopped == "timeout":
            ended = "timeout"
        stdout, stderr = bytes(self.stdout[:MAX_STDOUT]), bytes(self.stderr[:MAX_STDERR])
        return Execution(code, stdout, stderr, tree, ended, 0.0)

    def _read(self, seconds: float, init: int = 0, to_the_end: bool = False) -> Stopped:
        """Reads until the driver has sent a line (or all is closed), and says why it stopped.

        Args:
            init: process 1 of a sandbox to watch; 0 for none.
            to_the_end: do not stop at a line.
        """
        deadline = time.monotonic() + seconds
        while self.open:
            left = deadline - time.monotonic()
            if left <= 0:
                return "timeout"
            if init:
                left = min(left, WATCH)
            ready = self.poll.poll(1000 * left)
            if init and not ready and over_the_limits(init):
                return "killed"
            for fd, _ in ready:
                if not self._take(fd):
                    return "output"
            if not to_the_end and b"\n" in self.answer:
                return "line"
        return "end"

    def _take(self, fd: int) -> bool:
        """Reads what is there, and closes what is at its end -> whether it is no more than is allowed."""
        buffer = self.open[fd]
        try:
            data = os.read(fd, 1 << 16)
        except ConnectionResetError:  # it ended without having read all that we sent
            data = b""
        buffer += data
        if not data:
            self.poll.unregister(fd)
            del self.open[fd]
        most = MAX_TREE if buffer is self.answer else MAX_STDOUT
        return len(buffer) <= most


def _memory_file(stack: contextlib.ExitStack, content: bytes) -> int:
    """A file in memory, to be read from its beginning, that the stack closes."""
    fd = os.memfd_create("sandbox")
    stack.callback(os.close, fd)
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
