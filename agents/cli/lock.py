"""A folder that one process holds at a time, and a note in it that says who: process, host, since when."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path

from envs.jsonl import from_json

HOLDER = ".holder"  # the note; a process that was killed leaves it, and it means nothing without the lock


class HeldError(Exception):
    """Another process holds the folder; the message says which, as far as that is known."""


class Lock:
    """Locks a folder itself: such a lock always ends with the process, however it ends.

    Attributes:
        missing: whether the file system has no locks, so that nothing is held.

    Raises:
        HeldError: another process holds it.
        OSError: there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        self._note, self.missing = folder / HOLDER, False
        self._descriptor: int | None = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise HeldError(_holder(self._note)) from None
        except OSError:
            self.missing = True
            return
        us = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }
        with contextlib.suppress(OSError):  # the disk is full or read-only, which is not ours to say
            self._note.write_text(json.dumps(us) + "\n", encoding="utf-8")

    def release(self) -> None:
        """Lets other processes have the folder. Safe to call twice."""
        if self._descriptor is None:
            return
        if not self.missing:
            with contextlib.suppress(OSError):
                self._note.unlink()
        os.close(self._descriptor)
        self._descriptor = None


def _holder(note: Path) -> str:
    """Such as `process 4711 on gpu7 since 2026-01-31 23:59:59 +0000`."""
    try:
        them = from_json(note.read_text(encoding="utf-8"))
        return f"process {them['pid']} on {them['host']} since {them['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
