"""Options on a command line: what getopt does, by the option tables of `tables`."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from envs.verify.network.values import KINDS, NoMeaning

Fields = dict[str, str]  # what a command asks for: option or part -> its value, "" for a flag

ENTRY = re.compile(
    r"(?P<names>-?\S[^\s:?=!*%]*)(?:(?P<how>[:?])(?P<kind>\w+))?(?:=(?P<default>[\w.]+))?(?P<often>[!*%]?)"
)


@dataclass(frozen=True)
class Option:
    """An option of a tool; `tables` says what the parts mean."""

    name: str
    spellings: tuple[str, ...]
    kind: str
    optional: bool
    default: str | None
    often: str

    def read(self, tool: str, text: str) -> str:
        """The canonical form of a value."""
        try:
            return KINDS[self.kind](text)
        except NoMeaning as error:
            raise NoMeaning(f"{tool} {self.name}: {error}") from None


Table = dict[str, Option]  # spelling -> option
Given = tuple[Option, str | None]  # an option of a command line, and its value
Found = list[Given]


@functools.cache
def read_table(table: str) -> Table:
    """The options of a table by spelling. Raises ValueError for a bad entry and for a spelling used twice."""
    options: Table = {}
    for entry in table.split():
        parts = ENTRY.fullmatch(entry)
        if not parts or (parts["kind"] or "text") not in KINDS:
            raise ValueError(f"bad entry in an option table: {entry}")
        spellings = tuple(parts["names"].split("/"))
        kind, optional = parts["kind"] or "", parts["how"] == "?"
        option = Option(spellings[0], spellings, kind, optional, parts["default"], parts["often"])
        for spelling in spellings:
            if spelling in options:
                raise ValueError(f"{spelling} stands twice in an option table")
            options[spelling] = option
    return options


def scan(
    tool: str, table: Table, words: Sequence[str], *, long: bool = False, abbreviate: bool = True
) -> tuple[Found, list[str]]:
    """The options of a command in order, and its operands; after `--` every word is an operand.

    Args:
        long: whether the tool has long options (`--name value`, `--name=value`).
        abbreviate: whether an unambiguous beginning of a long option is enough.
    """
    found: Found = []
    operands: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return found, operands + rest
        if word in table and len(word) > 2 and not word.startswith("--"):  # a long name with one dash
            option = table[word]
            found.append((option, _next_value(tool, option, word, rest) if option.kind else None))
        elif long and word.startswith("--"):
            found.append(_long(tool, table, word, rest, abbreviate))
        elif word.startswith("-") and word != "-":
            found += _cluster(tool, table, word, rest)
        else:
            operands.append(word)
    return found, operands


def _long(tool: str, table: Table, word: str, rest: list[str], abbreviate: bool) -> Given:
    """A long option. Takes its value from `rest` where the value is a word of its own."""
    name, equal, value = word.partition("=")
    option = long_option(tool, table, name, word, abbreviate)
    if equal and not option.kind:
        raise NoMeaning(f"{tool} {name} takes no value")
    if equal:
        return option, option.read(tool, value)
    if option.kind and not option.optional:
        return option, _next_value(tool, option, name, rest)
    return option, None


def _cluster(tool: str, table: Table, word: str, rest: list[str]) -> Found:
    """Options of one letter in one word; the first that takes a value ends it."""
    found: Found = []
    for place in range(1, len(word)):
        short, joined = f"-{word[place]}", word[place + 1 :]
        if short not in table:
            alone = len(word) == 2 or word.startswith("--")
            raise NoMeaning(f"{tool} has no option {word if alone else f'{short} ({word})'}")
        option = table[short]
        if not option.kind:
            found.append((option, None))
            continue
        if joined:
            found.append((option, option.read(tool, joined)))
        elif option.optional:
            found.append((option, None))
        else:
            found.append((option, _next_value(tool, option, short, rest)))
        break
    return found


def _next_value(tool: str, option: Option, spelling: str, rest: list[str]) -> str:
    if not rest:
        raise NoMeaning(f"{tool} {spelling} needs a value")
    return option.read(tool, rest.pop(0))


def long_option(tool: str, table: Table, name: str, word: str, abbreviate: bool) -> Option:
    """The option of a long name, or of its unambiguous beginning."""
    if name in table:
        return table[name]
    near: dict[str, Option] = {}
    for spelling, option in table.items():
        if len(spelling) > 2 and spelling.startswith(name):
            near[option.name] = option
    if not abbreviate or not near or len(name) < 3:
        raise NoMeaning(f"{tool} has no option {word}")
    if len(near) > 1:
        raise NoMeaning(f"{tool} has more than one option that begins with {word}")
    return next(iter(near.values()))


def collect(tool: str, found: Iterable[Given]) -> Fields:
    """The options of a command by name, sorted, without those that only repeat a default."""
    fields: Fields = {}
    lists: dict[str, list[str]] = {}
    for option, value in found:
        if option.often == "!" and option.name in fields:
            raise NoMeaning(f"{tool} takes {option.name} only once")
        if option.often in ("*", "%"):
            values = lists.setdefault(option.name, [])
            values.append(value or "")
            fields[option.name] = _joined(values, any_order=option.often == "%")
        elif option.default is not None and value == option.default:
            fields.pop(option.name, None)
        else:
            fields[option.name] = value or ""
    return dict(sorted(fields.items()))


def _joined(values: Sequence[str], any_order: bool) -> str:
    if len(values) == 1:
        return values[0]
    return " ".join(map(repr, sorted(values) if any_order else values))


def aside(found: Found, *names: str) -> tuple[Found, Found]:
    """The options of these names, and the others."""
    chosen = [given for given in found if given[0].name in names]
    others = [given for given in found if given[0].name not in names]
    return chosen, others


def one_of_both(tool: str, fields: Fields, *names: str) -> None:
    """Refuses options that exclude one another."""
    given = [name for name in names if name in fields]
    if len(given) > 1:
        raise NoMeaning(f"{tool} takes only one of {' and '.join(given)}")
