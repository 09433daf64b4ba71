"""Failpoints: each durable operation below a folder is one, and at one of them the process kills itself.

They lie below Python's own functions, so that nothing that a library writes escapes them, and the code under
test knows nothing of them. Install them in a process that is to die: they cannot be taken out again.
"""

from __future__ import annotations

import builtins
import io
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Failpoints:
    """Names each operation before it happens: `write metrics.jsonl 3` is the third one on that file.

    Args:
        folder: below which operations count.
        log: a file for the names of the points that were reached, a line each.
        kill: the point at which to die, by SIGKILL.
    """

    def __init__(self, folder: Path, log: Path | None = None, kill: str | None = None) -> None:
        self.folder, self.kill = folder, kill
        self.counts: Counter[str] = Counter()
        self.lock = threading.RLock()  # TensorBoard writes in a thread of its own
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if log else None

    def reach(self, operation: str, path: Any, half: Callable[[], Any] | None = None) -> None:
        """An operation is about to happen. If it can be half done, there is a second point: `half-...`."""
        where = Path(os.fsdecode(path)).absolute()
        if not where.is_relative_to(self.folder):
            return
        name = where.relative_to(self.folder).as_posix()
        if "tfevents" in name:
            name = "tensorboard/events"  # the file's own name holds the time
        with self.lock:
            self._point(operation, name, lambda: None)
            if half is not None:
                self._point(f"half-{operation}", name, half)

    def _point(self, operation: str, name: str, before: Callable[[], Any]) -> None:
        self.counts[f"{operation} {name}"] += 1
        point = f"{operation} {name} {self.counts[f'{operation} {name}']}"
        if self.log is not None:
            os.write(self.log, f"{point}\n".encode())
        if point == self.kill:
            before()
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """Puts itself below everything that this process writes from now on."""
        for name in ("unlink", "remove", "rmdir", "mkdir", "truncate"):
            setattr(os, name, self._of_one_path(name, getattr(os, name)))
        for name in ("replace", "rename"):
            setattr(os, name, self._of_a_target(getattr(os, name)))
        os.fsync = self._of_a_descriptor(os.fsync)
        os.open = self._of_flags(os.open)
        builtins.open = io.open = self._file(io.open)  # type: ignore[assignment]
        self._safetensors()

    def _of_one_path(self, operation: str, real: Any) -> Any:
        def wrapped(path: Any, *rest: Any, **named: Any) -> Any:
            self.reach(operation, _from(path, named.get("dir_fd")))
            return real(path, *rest, **named)

        return wrapped

    def _of_a_target(self, real: Any) -> Any:
        def wrapped(source: Any, target: Any, **named: Any) -> Any:
            self.reach("rename", target)
            return real(source, target, **named)

        return wrapped

    def _of_a_descriptor(self, real: Any) -> Any:
        def wrapped(descriptor: int) -> None:
            self.reach("fsync", _path_of(descriptor))
            real(descriptor)

        return wrapped

    def _of_flags(self, real: Any) -> Any:
        def wrapped(path: Any, flags: int, *rest: Any, **named: Any) -> Any:
            if flags & WRITING:
                self.reach("open", _from(path, named.get("dir_fd")))
            return real(path, flags, *rest, **named)

        return wrapped

    def _file(self, real: Any) -> Any:
        points = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                def half() -> None:
                    super(Raw, self).write(bytes(data)[: len(data) // 2])

                points.reach("write", self.name, half)
                return super().write(data)

        def wrapped(
            file: Any,
            mode: str = "r",
            buffering: int = -1,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
            closefd: bool = True,
            opener: Any = None,
        ) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+"):
                return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
            self.reach("open", file)
            raw = Raw(os.fsdecode(file), mode.replace("b", "").replace("t", ""), closefd, opener)
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            if "b" in mode:
                return buffered
            return io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)

        return wrapped

    def _safetensors(self) -> None:
        """The one writer that is not Python's."""
        library: Any = sys.modules.get("safetensors.torch")
        if library is None:
            return
        real = library.serialize_file

        def wrapped(tensors: Any, path: Any, *rest: Any, **named: Any) -> Any:
            def half() -> None:
                real(tensors, path, *rest, **named)
                os.truncate(path, os.stat(path).st_size // 2)  # noqa: PTH116

            self.reach("write", path, half)
            return real(tensors, path, *rest, **named)

        library.serialize_file = wrapped


def _from(path: Any, folder: int | None) -> Any:
    """A path that is relative to an open folder, whole."""
    return path if folder is None else os.path.join(_path_of(folder), os.fsdecode(path))  # noqa: PTH118


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
