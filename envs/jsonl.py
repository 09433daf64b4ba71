"""Reads JSON, and JSONL files: one object per line. A mistake is named as `FILE:LINE: what: what to do`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from envs.files import BOM, not_utf8, open_file
from envs.types import InputError

MOST_BYTES = 64 * 2**20
MOST_BYTES_OF_A_LOG = 4 * 2**30  # which a run writes
MOST_BYTES_PER_LINE = 16 * 2**20


def read_jsonl(
    path: Path, flag: str = "", fix: str = "write one JSON object per line", log: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every line that is not empty.

    Args:
        flag: the flag that named the file, for messages about the file as a whole.
        fix: what messages advise for a line that is not a JSON object.
        log: the file is a run's, which may be written to now: a last line without its end is left out.

    Raises:
        FileNotFoundError: nothing is there.
        InputError: the file or a line cannot be read.
    """
    with open_file(path, f"{flag} {path}".strip(), MOST_BYTES_OF_A_LOG if log else MOST_BYTES) as file:
        number = 0
        # Only a line feed ends a line: JSON strings may hold U+2028 and the like.
        while raw := file.readline(MOST_BYTES_PER_LINE + 1):
            number += 1
            if len(raw) > MOST_BYTES_PER_LINE:
                allowed = f"{MOST_BYTES_PER_LINE // 2**20} MiB are allowed"
                raise InputError(f"{path}:{number}: the line is too long ({allowed}): {fix}")
            if log and not raw.endswith(b"\n"):
                return
            if number == 1:
                raw = raw.removeprefix(BOM)
            if raw.strip():
                utf8_fix = fix if log else "save the file as UTF-8"
                yield number, _object(raw, path, number, fix, utf8_fix)


def from_json(text: str | bytes) -> Any:
    """The value of a JSON text; ValueError where it is none, or is too deep for Python."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is too deeply nested") from None


def _object(raw: bytes, path: Path, number: int, fix: str, utf8_fix: str) -> dict[str, Any]:
    try:
        line = raw.rstrip(b"\r\n").decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(str(path), number, error, utf8_fix) from None
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{number}: not JSON ({error.msg}, column {error.colno}): {fix}") from None
    except RecursionError:
        raise InputError(f"{path}:{number}: too deeply nested: {fix}") from None
    except ValueError:  # more digits than Python converts
        raise InputError(f"{path}:{number}: a number has too many digits: write a shorter one") from None
    if not isinstance(row, dict):
        raise InputError(f"{path}:{number}: not a JSON object: {fix}")
    if "\\u" in line:
        for key, value in row.items():
            if _has_half_a_character(key) or _has_half_a_character(value):
                shown = key.encode("utf-8", "backslashreplace").decode()
                problem = "has half of a surrogate pair: write the whole character"
                raise InputError(f"{path}:{number}: {shown}: {problem}")
    return row


def _has_half_a_character(value: object) -> bool:
    """Whether a text in it cannot be written as UTF-8, because an escape such as \\ud83d stands alone."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
