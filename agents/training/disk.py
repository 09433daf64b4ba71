"""Durable changes to a run's folder. Each begins with `operation`, where a test can cut the power."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from envs.jsonl import from_json


def operation(name: str, path: Path) -> None:
    """Does nothing; a test puts something here that ends the run."""


def write(path: Path, data: bytes, append: bool = False) -> None:
    """Writes a file, or adds to its end. Durable after `sync`."""
    operation("write", path)
    with path.open("ab" if append else "wb") as file:
        file.write(data)


def sync(path: Path) -> None:
    """Makes the content of a file, or the names in a folder, safe from a power cut."""
    operation("fsync", path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Gives a file or folder its final name in one step, in place of a file of that name."""
    operation("rename", target)
    os.replace(source, target)


def replace(path: Path, data: bytes) -> None:
    """Writes a file so that a reader finds the old content or the new, never a part."""
    temporary = path.with_name(f".tmp-{path.name}")
    write(temporary, data)
    sync(temporary)
    rename(temporary, path)
    sync(path.parent)


def truncate(path: Path, size: int) -> None:
    """Cuts a file to `size` bytes."""
    operation("truncate", path)
    os.truncate(path, size)


def remove(path: Path) -> None:
    """Removes a file or a folder, if it exists."""
    if not path.exists():
        return
    operation("remove", path)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def is_temporary(path: Path) -> bool:
    """Whether a file or folder is half written: `replace` or a checkpoint has not yet given it its name."""
    return path.name.startswith(".tmp-")


def sha256(path: Path) -> str:
    """The sha256 sum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_sums(folder: Path) -> None:
    """Compares the files of a sealed folder with their sums in COMPLETE.

    Raises:
        ValueError, OSError: one is missing or damaged.
    """
    try:
        sums = dict(from_json((folder / "COMPLETE").read_text(encoding="utf-8"))["sha256"])
    except FileNotFoundError:
        raise ValueError("COMPLETE is missing") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError("COMPLETE is damaged") from None
    for name, expected in {"state.json": "", **sums}.items():
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing, which COMPLETE lists")
        if sha256(folder / name) != expected:
            raise ValueError(f"{name} does not match its sha256 sum in COMPLETE")


def as_json(value: Any) -> bytes:
    """A value as an indented JSON file; ValueError if it holds a NaN or an infinity."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


class Sum:
    """The bytes at the beginning of a log: how many they are, and their sha256 sum."""

    def __init__(self) -> None:
        self.size, self._digest = 0, hashlib.sha256()

    def add(self, data: bytes) -> None:
        """Counts what is added to the log's end."""
        self.size += len(data)
        self._digest.update(data)

    @property
    def plain(self) -> dict[str, Any]:
        """As plain values."""
        return {"bytes": self.size, "sha256": self._digest.hexdigest()}


def sum_of(log: Path, size: int) -> Sum:
    """The sum of a log's first bytes; ValueError if it has fewer."""
    found = Sum()
    if size == 0:
        return found
    if not log.is_file():
        raise ValueError(f"{log.name} is missing")
    with log.open("rb") as file:
        while data := file.read(min(2**20, size - found.size)):
            found.add(data)
    if found.size < size:
        raise ValueError(f"{log.name} has {found.size} bytes, fewer than the {size} recorded")
    return found
