"""The host of an attack: what is planted on it, whether it was harmed, and what an attack takes from it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from envs.verify.sandbox.bubblewrap import NOBODY

PATIENCE = 1.0  # seconds until everything of an attack must be gone
LOOK = 0.02  # seconds between two looks at the host


class Host:
    """Plants what an attack could steal or break, and says afterwards what was done to it.

    A secret stands in a file that anybody may read and write, in our environment, in an open descriptor,
    and behind a TCP and an abstract socket. A process of the sandbox's own user is there to be killed.
    """

    def __init__(self) -> None:
        self.secret = f"secret-{secrets.token_hex(16)}"
        self.connections = 0
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Host:
        stack = self.stack
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="planted-")))
        self.file = self.folder / f"planted-{secrets.token_hex(8)}"
        self.file.write_text(self.secret)
        self.folder.chmod(0o777)  # nothing protects it but that it cannot be seen
        self.file.chmod(0o666)
        self.before = self._files()

        os.environ["PLANTED"] = self.secret
        stack.callback(os.environ.pop, "PLANTED")
        fd = os.open(self.file, os.O_RDONLY)
        os.set_inheritable(fd, True)
        stack.callback(os.close, fd)

        self.tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.abstract = f"planted-{secrets.token_hex(8)}"
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(f"\0{self.abstract}")
        unix.listen()
        for server in (self.tcp, unix):
            threading.Thread(target=self._serve, args=(server,), daemon=True).start()

        self.other = f"600.{secrets.randbelow(10**9):09}"
        user = {}
        if os.geteuid() == 0:
            user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        self.decoy = subprocess.Popen(["sleep", self.other], **user, cwd="/")  # type: ignore[call-overload]
        stack.callback(self.decoy.wait)
        stack.callback(self.decoy.kill)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()

    def _serve(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed at the end
            while True:
                connection, _ = server.accept()
                self.connections += 1
                with connection:
                    connection.sendall(self.secret.encode())

    def _files(self) -> dict[str, tuple[bytes, int, int]]:
        found = {}
        for path in sorted(self.folder.iterdir()):
            status = path.stat()
            found[path.name] = (path.read_bytes(), status.st_mode, status.st_mtime_ns)
        return found

    def words(self, tag: str) -> dict[str, str]:
        """What the placeholders of a script stand for. `tag` is the attack's number."""
        return {
            "@TAG@": tag,
            "@FILE@": str(self.file),
            "@FOLDER@": str(self.folder),
            "@NAME@": self.file.name,
            "@HOME@": str(Path.home()),
            "@PORT@": str(self.tcp.getsockname()[1]),
            "@ABSTRACT@": self.abstract,
            "@DECOY@": str(self.decoy.pid),
            "@OTHER@": self.other.replace(".", "[.]"),
        }

    def harm(self) -> str:
        """What is not as it was; empty where all is."""
        if self._files() != self.before:
            return "the planted file or its folder was changed"
        if self.connections:
            return "somebody connected to a planted socket"
        if self.decoy.poll() is not None or _stopped(self.decoy.pid):
            return "the planted process was ended or stopped"
        return ""


def _stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal or is traced."""
    after_its_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    return after_its_name.split()[0] in "Tt"


def alive(tag: str) -> list[int]:
    """The processes of the host that have `tag` in their command line, but for this one."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):  # it has just ended
                if tag.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
    return found


def outlived(tag: str) -> list[int]:
    """As `alive`, after the time that everything has to go."""
    deadline = time.monotonic() + PATIENCE
    while (found := alive(tag)) and time.monotonic() < deadline:
        time.sleep(LOOK)
    return found


def free() -> tuple[int, int]:
    """Bytes of memory and of disk that the host has to give."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, size = line.partition(":")
        if name == "MemAvailable":
            return int(size.split()[0]) * 1024, shutil.disk_usage(tempfile.gettempdir()).free
    raise OSError("/proc/meminfo does not say how much memory is available")


@contextlib.contextmanager
def watched() -> Iterator[list[int]]:
    """What the block takes of memory and of disk at its worst moment, in bytes; known after it."""
    before, loss, done = free(), [0, 0], threading.Event()

    def watch() -> None:
        while not done.wait(LOOK):
            now = free()
            for place in (0, 1):
                loss[place] = max(loss[place], before[place] - now[place])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield loss
    finally:
        done.set()
        thread.join()
