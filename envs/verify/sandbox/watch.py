"""Limits on all processes of a sandbox together, watched from outside through /proc.

An ordinary user has no other means: the kernel's own limits count single processes, and bytes rather than
    files.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

MAX_MEMORY = 1 << 30  # bytes of address space of all processes together; each may have 256 MiB
MAX_FILES = 20_000  # in /box, /tmp and /dev/shm together: a file system in memory hardly limits their number


def first_child(pid: int) -> int:
    """The oldest process that a process with one thread has started; 0 where that cannot be seen."""
    with contextlib.suppress(OSError, IndexError):
        return _children(Path(f"/proc/{pid}/task/{pid}"))[0]
    return 0


def over_the_limits(init: int) -> bool:
    """Whether the sandbox whose process 1 is `init` uses more than it may."""
    memory = sum(map(_memory, _processes(init)))
    return memory > MAX_MEMORY or _files(init) > MAX_FILES


def _processes(init: int) -> Iterator[int]:
    pending = [init]
    while pending:
        pid = pending.pop()
        yield pid
        with contextlib.suppress(OSError):  # it ended while we looked
            for task in os.scandir(f"/proc/{pid}/task"):
                pending += _children(Path(task.path))


def _children(task: Path) -> list[int]:
    return [int(child) for child in (task / "children").read_text().split()]


def _memory(pid: int) -> int:
    """Bytes of address space."""
    with contextlib.suppress(OSError, IndexError):  # it ended while we looked
        return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    return 0


def _files(init: int) -> int:
    count = 0
    for name in ("box", "tmp", "dev/shm"):
        # These are mount points, so the command cannot put a link in their place.
        with contextlib.suppress(OSError):
            found = os.statvfs(f"/proc/{init}/root/{name}")
            count += found.f_files - found.f_ffree
    return count
