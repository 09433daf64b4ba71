"""Fillings: the rows of an in-memory database that a query and its reference are compared on.

A filling depends on the domain's tables, on its number, and on the values that the reference compares with.
Those values and their neighbours are frequent in it. So `>` and `>=`, 30 and 31, AND and OR give different
rows.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from envs.grammar import Among, ByQuery, Choice, Column, Key, Refers, Table, Unique, Whole
from envs.schema import load_spec
from envs.streams import stream
from envs.types import InputError

FILLINGS = 8
# How far from a value of the reference most numbers of a column lie; None: most lie anywhere.
LEANS = (None, 0, 1, -1)
TEXT_LITERAL = re.compile(r"'((?:[^']|'')*)'|\"([^\"]*)\"")
NUMBER_LITERAL = re.compile(r"(?<![\w.])\d{1,15}(?![\w.])")


class FocusedColumn(NamedTuple):
    """A column that the reference mentions, with those of the reference's values that can occur in it."""

    table: str
    column: str
    values: tuple[str | int, ...]


Focus = tuple[FocusedColumn, ...]


class Filling(NamedTuple):
    """Which database a query runs on.

    Attributes:
        where: the name of a domain, or the path of its file.
        number: from 0 to FILLINGS - 1.
        backwards: whether the rows of each table are put in in reverse.
    """

    where: str
    focus: Focus
    number: int
    backwards: bool = False

    def name(self) -> str:
        """Different for every filling."""
        return json.dumps(self)

    def tables(self) -> dict[str, Any]:
        """Name -> types of columns, and rows."""
        tables = {}
        for name in tables_of(self.where):
            own_focus = tuple(part for part in self.focus if part.table == name)
            tables[name] = json.loads(table_as_json(self.where, name, own_focus, self.number))
            if self.backwards:
                tables[name]["rows"].reverse()
        return tables


def tables_of(where: str) -> dict[str, Table]:
    """The tables of a domain.

    Raises:
        InputError: the domain cannot be read, or is not one of SQL.
    """
    verify = load_spec(where).verify
    if not isinstance(verify, ByQuery):
        raise InputError(f"{where}: verify.kind is {verify.kind!r}, not 'sql'")
    return verify.tables


@functools.lru_cache(maxsize=4096)
def focus_of(where: str, reference: str) -> Focus:
    """The columns that the reference mentions and that can hold one of its values.

    Raises:
        InputError: the domain cannot be read, or is not one of SQL.
    """
    texts = {single or double for single, double in TEXT_LITERAL.findall(reference)}
    numbers: set[int] = set()
    for digits in NUMBER_LITERAL.findall(TEXT_LITERAL.sub(" ", reference)):
        numbers.update((int(digits), -int(digits)))
    words = set(re.findall(r"\w+", reference.lower()))

    focus = []
    for table_name, table in tables_of(where).items():
        for column_name, column in table.columns.items():
            if {table_name.lower(), column_name.lower()} <= words:
                values = _occurring(where, column, texts, numbers)
                if values:
                    focus.append(FocusedColumn(table_name, column_name, tuple(values)))
    return tuple(focus)


def _occurring(where: str, column: Column, texts: set[str], numbers: set[int]) -> list[str | int]:
    """Those of the reference's values that can occur in a column, or lie next to what can."""
    if isinstance(column, Whole):
        return [number for number in sorted(numbers) if column.low - 1 <= number <= column.high + 1]
    possible: Iterable[str | int] = ()
    if isinstance(column, Among):
        possible = _choices(where, column)
    elif isinstance(column, Unique):
        possible = column.texts()
    return [value for value in possible if value in numbers or value in texts]


def _choices(where: str, column: Among) -> list[str | int]:
    """All values that a column can have: its own, or those of the slot that it names."""
    slot = load_spec(where).slots.get(column.slot)
    if not isinstance(slot, Choice):
        return column.values
    values = slot.values.values() if isinstance(slot.values, dict) else slot.values
    return list(dict.fromkeys(values))


@functools.lru_cache(maxsize=2048)
def table_as_json(where: str, name: str, focus: Focus, number: int) -> str:
    """One table of a filling: types of columns, and rows in an order that follows no column.

    Args:
        focus: only of this table.
        number: of the filling.
    """
    table = tables_of(where)[name]
    focused = {part.column: place for place, part in enumerate(focus)}
    types, columns = {}, []
    for column_name, column in table.columns.items():
        place = focused.get(column_name, 0)
        wanted = focus[place].values if column_name in focused else ()
        # In the first fillings the columns lean alike, then differently.
        lean = LEANS[(number + place * (number // len(LEANS))) % len(LEANS)]
        values = _column(
            where, column, table.rows, stream("filling", number, name, column_name), wanted, lean
        )
        columns.append(values)
        has_text = any(isinstance(value, str) for value in values)
        types[column_name] = "TEXT" if has_text else "INTEGER"
    return json.dumps({"columns": types, "rows": list(zip(*columns, strict=True))})


def _column(
    where: str, column: Column, count: int, rng: random.Random, wanted: Sequence[str | int], lean: int | None
) -> list[Any]:
    """`count` values of a column.

    Args:
        wanted: values of the reference that the column should have.
        lean: see `LEANS`.
    """
    if isinstance(column, Key):
        return rng.sample(range(1, count + 1), count)
    if isinstance(column, Unique):
        return _unique_texts(column, count, rng, wanted)
    if isinstance(column, Refers):
        keys = tables_of(where)[column.to].rows
        referred_to = rng.sample(range(1, keys + 1), keys - keys // 8)
        return rng.choices(referred_to, k=count)
    if isinstance(column, Among):
        return _some_of(_choices(where, column), count, rng, wanted)
    numbers = [value for value in wanted if isinstance(value, int)]
    if column.repeats == "never":
        return _different_numbers(column, count, rng, numbers)
    return _numbers(column, count, rng, numbers, lean)


def _unique_texts(column: Unique, count: int, rng: random.Random, wanted: Sequence[str | int]) -> list[Any]:
    others = [text for text in column.texts() if text not in wanted]
    drawn: list[Any] = list(wanted[:count])
    drawn += rng.sample(others, count - len(drawn))
    rng.shuffle(drawn)
    return drawn


def _some_of(
    choices: list[str | int], count: int, rng: random.Random, wanted: Sequence[str | int]
) -> list[Any]:
    """Half of them wanted; among the others some values are frequent and some are rare."""
    order = rng.sample(choices, len(choices))
    weights = [1 / (place + 1) for place in range(len(order))]
    drawn = rng.choices(order, weights, k=count)
    for row in range(count):
        if wanted and rng.random() < 0.5:
            drawn[row] = rng.choice(wanted)
    return drawn


def _neighbours(column: Whole, numbers: Iterable[int]) -> list[int]:
    """The numbers of the reference and those next to them, as far as the column can have them."""
    near: set[int] = set()
    for number in numbers:
        near.update((number - 1, number, number + 1))
    return sorted(near.intersection(range(column.low, column.high + 1)))


def _different_numbers(column: Whole, count: int, rng: random.Random, numbers: list[int]) -> list[int]:
    near = _neighbours(column, numbers)
    others = [number for number in range(column.low, column.high + 1) if number not in near]
    drawn = near[:count]
    drawn += rng.sample(others, count - len(drawn))
    rng.shuffle(drawn)
    return drawn


def _numbers(
    column: Whole, count: int, rng: random.Random, numbers: list[int], lean: int | None
) -> list[int]:
    """A fifth near the reference's numbers, half of them leaning, and some repeated, for DISTINCT to
    matter."""
    near = _neighbours(column, numbers)
    drawn: list[int] = []
    for _ in range(count):
        value, kind = rng.randint(column.low, column.high), rng.random()
        if near and kind < 0.2:
            value = rng.choice(near)
        elif numbers and lean is not None and kind < 0.7:
            value = min(max(rng.choice(numbers) + lean, column.low), column.high)
        elif drawn and kind > 0.85:
            value = rng.choice(drawn)
        drawn.append(value)
    return drawn
