"""Whether a query gives what the reference gives, over generated fillings of an in-memory SQLite database.

A task with a database of its own is compared on that, and on halves of its rows. `fillings` and `given` make
the rows, `sql_pool` runs the queries; here results are compared.
"""

from __future__ import annotations

import functools
import hashlib
import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from envs.messages import short
from envs.types import InputError
from envs.verify import sql_pool
from envs.verify.fillings import FILLINGS, Filling, FocusedColumn, focus_of
from envs.verify.given import PARTS, GivenDatabase, Part
from envs.verify.verdict import Status, Verdict

Rows = Filling | Part
Row = tuple[Any, ...]
ORDERED = re.compile(r"\border\s+by\b", re.IGNORECASE)


def compare(
    where: str, reference: str, command: str, ordered: bool, database: GivenDatabase | None = None
) -> Verdict:
    """Whether `command` is a query with the result of `reference`, on every filling.

    Rows are compared as a multiset, or as a sequence where `ordered`; rows that the reference leaves tied
    may then come in any order. Names of columns do not matter, their order does. 3 equals 3.0, fractions
    are compared to 9 digits.

    Args:
        where: the name of a domain or the path of its file, which has `verify: {kind: sql, tables: ...}`.
        reference: the right query.
        command: the query to judge: any text.
        ordered: whether the order of rows matters.
        database: of the task's own, instead of the domain's tables.
    """
    start = time.perf_counter()
    try:
        status, reason, differed = _judge(where, reference, command, ordered, database)
    except InputError as error:
        status, reason, differed = "not_executed", str(error), ""
    return Verdict(status, reason, differed, time.perf_counter() - start)


def fillings_of(where: str, reference: str, database: GivenDatabase | None = None) -> list[Rows]:
    """What a query and its reference are compared on.

    Raises:
        InputError: the domain cannot be read, or is not one of SQL.
    """
    if database is not None:
        return [Part(database, number) for number in range(PARTS)]
    focus = focus_of(where, reference)
    return [Filling(where, focus, number) for number in range(FILLINGS)]


def _judge(
    where: str, reference: str, command: str, ordered: bool, database: GivenDatabase | None
) -> tuple[Status, str, str]:
    """Status, reason, and what differed.

    Raises:
        InputError: nothing can be said.
    """
    left = sql_pool.SECONDS
    for filling in fillings_of(where, reference, database):
        wanted = wanted_result(filling, reference, ordered)
        if isinstance(filling, Part) and filling.number == 0 and not wanted.counts:
            raise InputError("the reference gives no row on its database")
        reply, spent = sql_pool.ask(filling, command, left)
        left -= spent
        if "invalid" in reply:
            return "invalid", reply["invalid"], ""
        if "failed" in reply:
            return "wrong", reply["failed"], ""
        rows = _comparable(reply["rows"])
        if difference := _difference(wanted, reply["columns"], rows, ordered):
            reason, differed = difference
            return "wrong", reason, f"filling {filling.number + 1}: {differed}"
    return "correct", "", ""


def fillings_for(where: str, queries: Sequence[str]) -> tuple[Filling, ...]:
    """Fillings for what several queries compare with, in whatever order they come.

    Raises:
        InputError: the domain cannot be read, or is not one of SQL.
    """
    focus: dict[tuple[str, str], list[str | int]] = {}
    for query in sorted(set(queries)):
        for part in focus_of(where, query):
            focus.setdefault((part.table, part.column), []).extend(part.values)
    columns = []
    for (table, column), values in sorted(focus.items()):
        columns.append(FocusedColumn(table, column, tuple(dict.fromkeys(values))))
    return tuple(Filling(where, tuple(columns), number) for number in range(FILLINGS))


@functools.lru_cache(maxsize=4096)
def effect(fillings: Sequence[Filling], query: str) -> str:
    """What a query gives on fillings, as a text that is equal for equal results; compared as in `compare`.

    The order of rows counts where the query asks for one. Empty where it fails or never gives a row.

    Raises:
        InputError: no worker can be started, or it does not answer.
    """
    left = sql_pool.SECONDS
    found = []
    for filling in fillings:
        reply, spent = sql_pool.ask(filling, query, left)
        left -= spent
        if "rows" not in reply:
            return ""
        rows = _comparable(reply["rows"])
        ordered = len(rows) > 1 and ORDERED.search(query) is not None
        found.append((reply["columns"], ordered, rows if ordered else sorted(rows, key=repr)))
    if not any(rows for _, _, rows in found):
        return ""
    return hashlib.sha256(repr(found).encode()).hexdigest()


class WantedResult:
    """What the reference gives on one filling.

    Attributes:
        rows: in one order that is right.
        blocks: end of each run of rows whose order among themselves the reference leaves open.
    """

    def __init__(self, columns: int, rows: list[Row], reversed_rows: list[Row]) -> None:
        self.columns, self.rows = columns, rows
        self.counts = Counter(rows)
        if Counter(reversed_rows) == self.counts:
            self.blocks = tied_blocks(rows, reversed_rows)
        else:  # a LIMIT cuts through a tie: only this order is right
            self.blocks = list(range(1, len(rows) + 1))


def tied_blocks(rows: list[Row], other_order: list[Row]) -> list[int]:
    """The end of each shortest run that holds the same rows in both orders."""
    blocks = []
    ahead: Counter[Row] = Counter()  # rows so far in one order minus those in the other
    for place, (row, other) in enumerate(zip(rows, other_order, strict=True), start=1):
        ahead[row] += 1
        ahead[other] -= 1
        if not any(ahead.values()):
            ahead.clear()
            blocks.append(place)
    return blocks


@functools.lru_cache(maxsize=4096)
def wanted_result(filling: Rows, reference: str, ordered: bool) -> WantedResult:
    """What the reference gives on a filling.

    Where order matters, the reference runs a second time over the same rows put in in reverse: what changes
    places was tied.

    Raises:
        InputError: the reference gives no result.
    """
    columns, rows = _result(reference, filling)
    reversed_rows = rows
    if ordered:
        _, reversed_rows = _result(reference, filling._replace(backwards=True))
    return WantedResult(columns, rows, reversed_rows)


def _result(reference: str, filling: Rows) -> tuple[int, list[Row]]:
    reply, _ = sql_pool.ask(filling, reference)
    if "rows" not in reply:
        raise InputError(f"the reference fails: {reply.get('invalid') or reply.get('failed')}")
    return reply["columns"], _comparable(reply["rows"])


def _comparable(rows: list[list[Any]]) -> list[Row]:
    """Rows whose values can be compared with ==."""
    return [tuple(map(_comparable_value, row)) for row in rows]


def _comparable_value(value: Any) -> Any:
    """3.0 becomes 3, a fraction loses what rounding may have changed, a blob becomes bytes."""
    if isinstance(value, list):
        return bytes.fromhex(value[0])
    if isinstance(value, float) and abs(value) < 2**53:
        rounded = value if value.is_integer() else float(f"{value:.9g}")
        return int(rounded) if rounded.is_integer() else rounded
    return value


def _difference(wanted: WantedResult, columns: int, rows: list[Row], ordered: bool) -> tuple[str, str] | None:
    """(reason, what differed), or None where nothing does."""
    if columns != wanted.columns:
        return "other columns", f"{_count(columns, 'column')} instead of {wanted.columns}"
    counts = Counter(rows)
    if counts != wanted.counts:
        return "other rows", _other_rows(wanted, counts, len(rows))
    if ordered:
        begin = 0
        for end in wanted.blocks:
            if Counter(rows[begin:end]) != Counter(wanted.rows[begin:end]):
                shown, expected = short(rows[begin]), short(wanted.rows[begin])
                return "other order", f"row {begin + 1} is {shown} instead of {expected}"
            begin = end
    return None


def _other_rows(wanted: WantedResult, counts: Counter[Row], number: int) -> str:
    """How the rows differ: their number, and the first that is missing or should not be there."""
    missing = next(iter(wanted.counts - counts), None)
    extra = next(iter(counts - wanted.counts), None)
    if number == len(wanted.rows):
        return f"{short(extra)} instead of {short(missing)}"
    if missing is not None:
        first = f"first missing: {short(missing)}"
    else:
        first = f"first that should not be: {short(extra)}"
    return f"{_count(number, 'row')} instead of {len(wanted.rows)}; {first}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
