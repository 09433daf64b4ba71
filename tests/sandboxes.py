"""What the tests of the sandbox share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from envs.verify.sandbox.archive import Entry

ROOT = Path(__file__).resolve().parent.parent
TREE = {
    "report.txt": Entry("file", 0o644, b"one\ntwo\n"),
    "empty": Entry("file", 0o600),
    "docs": Entry("directory", 0o750),
    "docs/run": Entry("file", 0o755, b"#!/bin/bash\necho ran\n"),
    "link": Entry("link", 0o777, b"docs/run"),
    "dangling": Entry("link", 0o777, b"/no where\xff"),
}
needs_sandbox = pytest.mark.usefixtures("sandbox")


def with_bwrap(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str | None) -> None:
    """Puts a program in the place of bubblewrap, or none."""
    for name in ("setpriv", "bash", "cat"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    if script is not None:
        (folder / "bwrap").write_text(f"#!/bin/bash\n{script}\n")
        (folder / "bwrap").chmod(0o755)
    folder.chmod(0o755)
    for parent in folder.parents[:3]:
        if parent.stat().st_uid == os.geteuid():
            parent.chmod(parent.stat().st_mode | 0o055)
    monkeypatch.setenv("PATH", str(folder))
