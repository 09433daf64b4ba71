"""What fuzz and property tests share: odd texts, damaged copies of good ones, how input is refused."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st

from envs.types import InputError

Result = TypeVar("Result")
SECONDS = 20  # after which a reader hangs; the slowest example takes a tenth of a second
# What makes trouble in texts: quotes, templates, formats, markup, control characters, bidi, halves, numbers.
ODD = [
    *(
        "",
        " ",
        "\t",
        "\r",
        "\r\n",
        "\x00",
        "\x1b[31m",
        "\x7f",
        "\x85",
        "\u2028",
        "\u202e",
        "\u2066",
        "\ufeff",
    ),
    *(
        "{",
        "}",
        "{}",
        "{0}",
        "{task}",
        "{command}",
        "{slot",
        "%s",
        "%(x)s",
        "$x",
        "${x}",
        "$(id)",
        "`id`",
        "\\",
    ),
    *(
        "'",
        '"',
        "</s>",
        "[/INST]",
        "<|im_end|>",
        "<think>",
        "</think>",
        "<script>",
        "&amp;",
        "[x](y)",
        "![x](y)",
    ),
    *("é", "e\u0301", "日本", "🙂", "\ufdd0", "\U0010ffff", "ﷺ", "ß", "İ", "аbс"),
    *(
        "0",
        "-1",
        "1e999",
        "1e-320",
        "nan",
        "inf",
        "010",
        "1_000",
        "0x1f",
        "9" * 5000,
        "true",
        "null",
        "~",
        "no",
    ),
    *(
        "..",
        "/",
        "../../etc/passwd",
        "/dev/zero",
        ".",
        "-",
        "--",
        "--help",
        "=",
        ":",
        ",",
        ";",
        "#",
        "@",
        "*",
    ),
]
texts = st.one_of(st.sampled_from(ODD), st.text(max_size=20))
sentences = st.lists(texts, max_size=6).map("".join)


@st.composite
def damaged(draw: st.DrawFn, seeds: Sequence[str], pieces: Sequence[str] = ()) -> str:
    """One of some texts with a few places cut, doubled, moved or replaced."""
    text = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 30)))
        from_elsewhere = draw(st.integers(0, len(text)))
        moved = text[from_elsewhere : from_elsewhere + draw(st.integers(0, 30))]
        piece = draw(st.one_of(st.sampled_from([*pieces, *ODD]), st.just(moved), st.text(max_size=3)))
        text = text[:start] + piece + text[end:]
    return text


scalars = st.one_of(
    *(st.none(), st.booleans(), st.integers(-2, 2), st.integers(), st.floats(), texts),
    st.sampled_from([10**400, -(2**63), 1e308, "shell", "sql", "all", "embedded"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def altered(draw: st.DrawFn, good: Any) -> Any:
    """Plain values with a few of them replaced, removed, or put under another key."""
    found = good
    for _ in range(draw(st.integers(1, 3))):
        found = _altered_once(draw, found)
    return found


def _altered_once(draw: st.DrawFn, value: Any) -> Any:
    if draw(st.integers(0, 9)) == 0 or not isinstance(value, (dict, list)) or not value:
        return draw(values)
    if isinstance(value, list):
        place = draw(st.integers(0, len(value) - 1))
        kept = value[:place] + value[place + 1 :]
        return kept if draw(st.integers(0, 9)) == 0 else [*kept, _altered_once(draw, value[place])]
    key = draw(st.sampled_from(sorted(value, key=str)))
    others = {name: inner for name, inner in value.items() if name != key}
    match draw(st.integers(0, 9)):
        case 0:
            return others
        case 1:
            return {**others, draw(texts): value[key]}
    return {**others, key: _altered_once(draw, value[key])}


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    """Fails what takes longer than `SECONDS`."""

    def stop(*_: object) -> None:
        raise AssertionError(f"it takes more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def read_or_refused(read: Callable[..., Result], *arguments: Any) -> Result | None:
    """What a reader gives, or None where it refuses the input in one line; any other end is a fault."""
    with no_hang():
        try:
            return read(*arguments)
        except InputError as error:
            refusal = str(error)
    assert refusal.strip()
    return None
