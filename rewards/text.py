"""Comparing sentences without a model: by words, characters, and the values in them; and reading a rating."""

from __future__ import annotations

import difflib
import re
from collections import Counter

QUOTED = re.compile(r"(?<!\w)'([^']+)'(?!\w)|\"([^\"]+)\"|`([^`]+)`")
PLAIN = re.compile(r"[a-z]{3,}")
COMPOUND = re.compile(r"\d|\w[./:@_]\w|://")  # a digit, or parts that are joined
PREFIXED = re.compile(r"[-.:/]\w|--\w")  # a flag, a suffix, a port
RATING = re.compile(
    r"\D{0,12}(?<!-)(\d+(?:[.,]\d+)?)(?![\d.,]*\s*(?:%|(?:-|to)\s*\d))(?:\s*(?:/|out of)\s*(\d+))?"
)


def token_overlap(a: str, b: str) -> float:
    """Jaccard overlap of the lower-case words; 0 where there are no words."""
    words_a, words_b = set(a.lower().split()), set(b.lower().split())
    union = words_a | words_b
    if not union:
        return 0.0
    return len(words_a & words_b) / len(union)


def sequence_ratio(a: str, b: str) -> float:
    """difflib's ratio over lower-case characters."""
    return difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio()


def values_of(text: str) -> Counter[str]:
    """The multiset of values in a sentence, word for word.

    A value is a text in quotes, or a word that

    - has a digit: `443`, `10.0.0.1`, `web2`
    - joins parts: `notes.txt`, `src/main`, `access_log`, `me@lab.test`, `http://a.b`
    - starts like a flag, a suffix or a port: `-v`, `.log`, `:53`
    - is capitalised and not the first word: `Vienna`

    A search word, such as `error` in "lines where error occurs", looks like any other word and is not found.
    """
    return Counter(text[start:end] for start, end in value_spans(text))


def value_spans(text: str) -> list[tuple[int, int]]:
    """Where the values of a sentence begin and end, in their order (see `values_of`)."""
    found = []
    for match in QUOTED.finditer(text):
        found.append(match.span(match.lastindex or 0))
    unquoted = QUOTED.sub(lambda match: " " * len(match[0]), text)
    for place, match in enumerate(re.finditer(r"\S+", unquoted)):
        word = match[0].rstrip(".,;:!?)")
        bare = word.lstrip("(")
        capitalised = place > 0 and "A" <= bare[:1] <= "Z"
        if capitalised or COMPOUND.search(bare) or PREFIXED.match(bare):
            end = match.start() + len(word)
            found.append((end - len(bare), end))
    return sorted(found)


def plain_words(text: str) -> set[str]:
    """The lower-case words of three or more letters that are not values."""
    words = set()
    for word in QUOTED.sub(" ", text).split():
        bare = word.strip("().,;:!?")
        if PLAIN.fullmatch(bare):
            words.add(bare)
    return words


def f1(wanted: Counter[str], found: Counter[str]) -> float:
    """F1 of two multisets: 2 |A and B| / (|A| + |B|); ValueError where both are empty."""
    if not wanted and not found:
        raise ValueError("nothing to compare")
    return 2 * (wanted & found).total() / (wanted.total() + found.total())


def read_rating(reply: str) -> float | None:
    """A rating from 0 to 10, divided by 10; None where the reply does not start with one.

    Read: `7`, `7.5`, `7/10`, `7 out of 10`, `Rating: 7`. Not read: 11, -7, 4/5, 10 %, 0-10: 7.
    """
    match = RATING.match(reply.strip())
    if not match or match[2] not in (None, "10"):
        return None
    rating = float(match[1].replace(",", "."))
    if rating > 10:
        return None
    return rating / 10
