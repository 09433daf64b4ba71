"""What commands read and write: folders of runs, default names, JSON, whole files."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

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
