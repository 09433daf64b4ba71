"""What a sentence says: the values in it (numbers, addresses, names, flags) and its plain words."""

from __future__ import annotations

import re
from collections import Counter

QUOTED = re.compile(r"(?<!\w)'([^']+)'(?!\w)|\"([^\"]+)\"|`([^`]+)`")
PLAIN = re.compile(r"[a-z]{3,}")


def values_of(text: str) -> Counter[str]:
    """The multiset of values that a sentence carries word for word.

    A value is what stands in quotes, and a word that has a digit (`443`, `10.0.0.1`, `web2`), that is made of parts (`notes.txt`,
    `src/main`, `access_log`, `me@lab.test`, `http://a.b`), that starts like a flag or a suffix (`-v`, `.log`, `:53`), or that is
    capitalised after the first word (`Vienna`). A search word such as `error` in "lines where error occurs" is not told from the others.
    """
    found = Counter(next(filter(None, match.groups())) for match in QUOTED.finditer(text))
    for place, word in enumerate(QUOTED.sub(" ", text).split()):
        bare = word.rstrip(".,;:!?)").lstrip("(")
        if (
            re.search(r"\d|\w[./:@_]\w|://", bare)
            or re.match(r"[-.:/]\w|--\w", bare)
            or (place and re.match(r"[A-Z]", bare))
        ):
            found[bare] += 1
    return found


def plain_words(text: str) -> set[str]:
    """The lower-case words of three letters and more that are no values."""
    return {
        bare
        for word in QUOTED.sub(" ", text).split()
        if PLAIN.fullmatch(bare := word.strip("().,;:!?")) is not None
    }


def f1(wanted: Counter[str], found: Counter[str]) -> float:
    """F1 of two multisets: 2 |A and B| / (|A| + |B|); ValueError where both are empty."""
    if not wanted and not found:
        raise ValueError("nothing to compare")
    return 2 * (wanted & found).total() / (wanted.total() + found.total())
