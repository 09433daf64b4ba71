"""What a machine does to a command that is right: it is full, it is read-only, it ends the command.

Each is a line for the user, not a traceback.
"""

from __future__ import annotations

import errno
import os
import sys

# What the disk says -> what the user is told, and what to do.
DISK = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EROFS: "the file system is read-only: make it writable",
    errno.EACCES: "this user may not write or read there: change the permissions",
    errno.EPERM: "this user may not write or read there: change the permissions",
    errno.EFBIG: "the file is larger than is allowed here: raise the limit (ulimit -f)",
    errno.EIO: "the disk failed: look at the system's log",
    errno.ESTALE: "the network file system was lost: mount it again",
}
MEMORY = "out of memory: free some, or choose a smaller model"


class Terminated(BaseException):
    """SIGTERM was received. Like KeyboardInterrupt, it is not an error."""


def fault(error: Exception) -> str:
    """What the user is told of an error that the machine is to blame for; empty for any other."""
    if isinstance(error, OSError):
        said, name = DISK.get(error.errno or 0, ""), error.filename
        if isinstance(name, str | bytes):
            return said and f"{os.fsdecode(name)}: {said}"
        return "" if error.errno in (errno.EACCES, errno.EPERM) else said
    if type(error).__name__ == "SafetensorError":  # it has the number in its text alone
        for number, said in DISK.items():
            if f"os error {number})" in str(error) or f"code: {number}," in str(error):
                return said
    if isinstance(error, MemoryError):
        return MEMORY
    if isinstance(error, RuntimeError) and "torch" in sys.modules:
        from agents.policy.batches import out_of_memory

        return MEMORY if out_of_memory(error) else ""
    return ""
