"""What commands read and write: folders of runs, default names, JSON, whole files."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from envs.messages import one_line
from envs.types import InputError


def file_name(names: Iterable[str]) -> str:
    """A name for a file or folder about several things."""
    parts = [re.sub(r"[^\w.-]", "-", name) for name in dict.fromkeys(names)]
    return "--".join(parts)[:100].strip("-.") or "report"


@contextlib.contextmanager
def writing(output: Path, what: str = "folder") -> Iterator[None]:
    """Around everything that is written to --output.

    Args:
        what: what the user can choose another of.

    Raises:
        InputError: it cannot be written, with the reason, in one line.
    """
    try:
        yield
    except OSError as error:
        message = f"--output {output}: cannot be written ({error.strerror}): choose another {what}"
        raise InputError(message) from None


def check_output(output: str | None, name: str | None = None, what: str = "folder") -> None:
    """Raises InputError where --output cannot be written, or is in a run. Nothing is made.

    Args:
        name: of the new folder in it, which must be free.
        what: what will be written, a folder or a file.
    """
    if output is None:
        return
    path = Path(output)
    another = f"choose another {what}"
    try:
        if path.exists() and (not path.is_dir() if what == "folder" else not path.is_file()):
            kind = "is no folder" if what == "folder" else "is no file"
            raise InputError(f"--output {output}: {kind}: {another}")
        above = next(each for each in (path, *path.absolute().parents) if each.exists())
        writable = above.is_file() or os.access(above, os.W_OK)
        if not above.is_dir() and above != path:
            raise NotADirectoryError(errno.ENOTDIR, f"{above} is a file")
        if not writable:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        beside = path if what == "folder" else path.parent
        if (beside / "config.yaml").is_file() or any(map(_is_run, path.absolute().parents)):
            raise InputError(f"--output {output}: is in the folder of a run: choose another place")
        if name is not None:
            new = path / name
            if new.exists() and not new.is_dir():
                raise InputError(f"--name {name}: {new} is a file: choose another --name")
            if (new / "config.yaml").exists():
                fix = f"use --resume {new}, or choose another --name"
                raise InputError(f"--name {name}: {new} is there already: {fix}")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else one_line(error)
        raise InputError(f"--output {output}: cannot be written ({reason}): {another}") from None


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (
        (folder / "metrics.jsonl").is_file() or (folder / "environment.json").is_file()
    )


def write_json(path: Path, value: Any) -> None:
    """Writes plain values; a number that JSON does not have, such as NaN, is our own mistake and raises."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_whole(path: Path, text: str) -> None:
    """Writes the whole file or nothing: what was there stays until the new text is complete.

    Raises:
        OSError: it cannot be written; what was there is still there.
    """
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def check_folders(runs: Sequence[str], example: str) -> None:
    """Raises InputError where no run is given, or one twice."""
    if not runs:
        raise InputError(f"no run is given: {example}")
    known = set()
    for run in runs:
        place = Path(run).resolve()
        if place in known:
            raise InputError(f"{run}: is given twice: leave one out")
        known.add(place)
