"""Pieces of error messages: a value in short, the nearest known word, an exception on one line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def short(value: object) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def nearest(word: str, known: Sequence[str]) -> str:
    """A hint for a message: the known word most like this one."""
    near = difflib.get_close_matches(word, known, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""
