"""What is wrong where the sandbox cannot be set up, and the fix."""

from __future__ import annotations

import re
from pathlib import Path

NOT_INSTALLED = "bubblewrap is not installed: apt-get install bubblewrap"
SETTINGS = Path("/proc/sys")

# What bubblewrap and tar say, as regular expressions.
TOO_OLD = re.compile("nknown option")
PASSING = re.compile(
    "temporarily unavailable|annot allocate memory|oo many open files|No space left|nterrupted"
)
BLOCKED = re.compile(
    "namespace|uid map|gid map|loopback|pivot_root|[Mm]ount|Operation not permitted|Permission denied"
)


class SandboxError(RuntimeError):
    """The sandbox could not be set up: one line with the fix. It says nothing about the command.

    Attributes:
        lasting: whether trying again is useless.
    """

    def __init__(self, message: str, lasting: bool = False):
        super().__init__(message)
        self.lasting = lasting


def diagnosis(stderr: bytes) -> SandboxError:
    """The cause and the fix, from what setting up wrote and from the settings of this system."""
    said = " ".join(stderr.decode(errors="replace").split())[:300]
    if said.startswith("tar: "):
        return SandboxError(f"the file tree cannot be laid out: make it smaller or rename its files ({said})")
    if TOO_OLD.search(said):
        fix = "install a newer one"
        return SandboxError(f"bubblewrap is too old (0.8 or newer is needed): {fix} ({said})", lasting=True)
    blocked = BLOCKED.search(said)
    if blocked and (setting := blocking_setting()):
        return SandboxError(f"user namespaces are blocked: {setting} ({said})", lasting=True)
    if PASSING.search(said):
        return SandboxError(f"the sandbox cannot be started: give the machine less to do ({said})")
    if blocked:
        fix = "allow them; for a container, docs/SANDBOX.md has the options"
        return SandboxError(f"user namespaces are blocked: {fix} ({said})", lasting=True)
    return SandboxError(
        f"the sandbox cannot be set up: run bwrap by hand to see why ({said or 'no message'})"
    )


def blocking_setting() -> str:
    """What to change where a setting of this system blocks user namespaces; empty where none does."""
    if _setting("kernel/unprivileged_userns_clone") == "0":
        return "run sysctl -w kernel.unprivileged_userns_clone=1"
    if _setting("user/max_user_namespaces") == "0":
        return "run sysctl -w user.max_user_namespaces=10000"
    if _setting("kernel/apparmor_restrict_unprivileged_userns") not in ("", "0"):
        return (
            "AppArmor restricts them, as on Ubuntu 24.04: load a profile for bwrap (docs/SANDBOX.md has one),"
            " or run sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
        )
    return ""


def _setting(name: str) -> str:
    """A file below /proc/sys; empty where it is not there or may not be read."""
    try:
        return (SETTINGS / name).read_text().strip()
    except OSError:
        return ""
