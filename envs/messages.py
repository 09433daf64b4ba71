"""Pieces of error messages: a value cut short, the word that was probably meant, a text safe to print."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

ENDLESS = re.compile(r"\S{200,}")  # a word that nobody reads to its end


def short(value: object) -> str:
    """A value for a message, in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def did_you_mean(word: object, known: Iterable[object], otherwise: str = "") -> str:
    """What to do about an unknown word: the end of an error message.

    Args:
        word: what was given.
        known: the words that are allowed there.
        otherwise: the advice where no known word is similar; by default the list of all of them.

    Returns:
        `did you mean WORD?`, or the advice.
    """
    words = [str(each) for each in known]
    similar = difflib.get_close_matches(str(word), words, n=1)
    if similar:
        return f"did you mean {similar[0]}?"
    return otherwise or f"use one of {', '.join(words)}"


def one_line(error: BaseException) -> str:
    """The text of an exception on one line, safe for a terminal; the name of its type where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return visible(ENDLESS.sub(lambda word: f"{word[0][:57]}...{word[0][-20:]}", text))


def visible(text: str) -> str:
    """A text of a model, a file or a flag, safe for a terminal: what cannot be printed is escaped."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
