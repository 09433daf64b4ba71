"""Is there a sandbox on this machine?"""

from __future__ import annotations

import math
import os
import shutil
import sys
import threading
import time

from envs.verify.sandbox.archive import Entry
from envs.verify.sandbox.errors import SandboxError, diagnosis
from envs.verify.sandbox.run import SETUP, execute


def unavailable() -> str:
    """Empty where commands can be executed here, else one line: what is missing and the fix. Never raises.

    The answer is remembered. A failure that may pass, such as too many processes at that moment, is looked
    at again after ten times as long as it took to find it.
    """
    with _probing:
        if time.monotonic() >= _found.until:
            started = time.monotonic()
            error = _probe()
            ended = time.monotonic()
            lasting = error is None or error.lasting
            _found.missing = str(error or "")
            _found.until = math.inf if lasting else ended + 10 * (ended - started)
        return _found.missing


class _Found:
    """What the last probe found, and until when it holds."""

    def __init__(self) -> None:
        self.missing, self.until = "", -math.inf


_probing = threading.Lock()
_found = _Found()


def _probe() -> SandboxError | None:
    if sys.platform != "linux":
        fix = "use a Linux machine, a virtual one will do"
        return SandboxError(f"commands are executed on Linux only: {fix}", lasting=True)
    if os.geteuid() == 0 and shutil.which("bwrap") and not shutil.which("setpriv"):
        return SandboxError("setpriv is not installed: apt-get install util-linux", lasting=True)
    try:
        result = execute("cat probe", {"probe": Entry("file", 0o644, b"works")}, wall=SETUP)
    except SandboxError as error:
        return error
    if result.stdout != b"works" or result.tree is None:
        return diagnosis(result.stderr)
    return None
