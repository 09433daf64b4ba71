"""Whether a query gives what the reference gives, over generated fillings of an in-memory SQLite database.

A filling depends on the domain's tables, on its number, and on the values that the reference compares with: those values and their
neighbours are frequent in it, so that `>` and `>=`, 30 and 31, AND and OR give different rows. Queries run in processes of their own that
are killed when they run too long; see `sql_worker` for what else holds them.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from envs.grammar import Among, ByQuery, Choice, Column, Key, Refers, Table, Unique, Whole
from envs.messages import short
from envs.schema import load_spec
from envs.streams import stream
from envs.types import InputError
from envs.verify import sql_worker
from envs.verify.verdict import Status, Verdict

FILLINGS = 8
SECONDS = 1.0  # wall time of a query over all fillings together
LOAD_SECONDS = 30.0  # for filling a database, which cannot go wrong but may be slow on a busy machine
LONGEST = 10_000  # characters of a query
MOST_REPLY = 16 * 2**20  # bytes
KEPT_DATABASES = 256  # of a worker, some 70 KB each
KEPT_WORKERS = 2 * (os.cpu_count() or 1)
LEANS = (
    None,
    0,
    1,
    -1,
)  # how far from a value of the reference most numbers of a column lie; None: most lie anywhere

Row = tuple[Any, ...]
Focus = tuple[
    tuple[str, str, tuple[str | int, ...]], ...
]  # (table, column, values of the reference that can occur in it)


def compare(where: str, reference: str, command: str, ordered: bool) -> Verdict:
    """Whether `command` is a query with the result of `reference`, on every filling.

    Rows are compared as a multiset, or as a sequence where `ordered`; rows that the reference leaves tied may then come in any order.
    Names of columns do not matter, their order does. 3 equals 3.0, fractions are compared to 9 digits.

    Args:
        where: the name of a domain or the path of its file, which has `verify: {kind: sql, tables: ...}`.
        reference: the right query.
        command: the query to judge: any text.
        ordered: whether the order of rows matters.
    """
    start = time.perf_counter()
    status, reason, differed = _judge(where, reference, command, ordered)
    return Verdict(status, reason, differed, time.perf_counter() - start)


def _judge(where: str, reference: str, command: str, ordered: bool) -> tuple[Status, str, str]:
    left = SECONDS
    try:
        focus = _focus(where, reference)
        for filling in range(FILLINGS):
            wanted = _wanted(where, reference, ordered, focus, filling)
            reply, spent = _ask(where, focus, filling, False, command, left)
            if "invalid" in reply:
                return "invalid", reply["invalid"], ""
            if "failed" in reply:
                return "wrong", reply["failed"], ""
            if difference := _difference(wanted, reply["columns"], _plain(reply["rows"]), ordered):
                return "wrong", difference[0], f"filling {filling + 1}: {difference[1]}"
            left -= spent
    except InputError as error:
        return "not_executed", str(error), ""
    return "correct", "", ""


# --- results


class _Wanted:
    """What the reference gives on one filling.

    Attributes:
        rows: in one order that is right.
        blocks: end of each run of rows whose order among themselves the reference leaves open; all rows are one run where order is free.
    """

    def __init__(self, columns: int, rows: list[Row], reversed_rows: list[Row] | None) -> None:
        self.columns, self.rows = columns, rows
        self.counts = Counter(rows)
        self.blocks: list[int] = []
        if (
            reversed_rows is None or Counter(reversed_rows) != self.counts
        ):  # a LIMIT cuts through a tie: then only this order is right
            self.blocks = list(range(1, len(rows) + 1))
        else:
            ahead: Counter[Row] = Counter()  # rows so far in one order, less those in the other
            for place, (row, other) in enumerate(zip(rows, reversed_rows, strict=True)):
                ahead[row] += 1
                ahead[other] -= 1
                if not any(ahead.values()):
                    ahead.clear()
                    self.blocks.append(place + 1)


@functools.lru_cache(maxsize=4096)
def _wanted(where: str, reference: str, ordered: bool, focus: Focus, filling: int) -> _Wanted:
    """Where order matters, the reference runs a second time over the same rows put in in reverse: what changes places was tied.

    Raises:
        InputError: the reference gives no result.
    """
    results = []
    for backwards in (False, True)[: 1 + ordered]:
        reply, _ = _ask(where, focus, filling, backwards, reference, SECONDS)
        if "rows" not in reply:
            raise InputError(f"the reference fails: {reply.get('invalid') or reply.get('failed')}")
        results.append(_plain(reply["rows"]))
    return _Wanted(reply["columns"], results[0], results[-1] if ordered else None)


def _plain(rows: list[list[Any]]) -> list[Row]:
    """Rows whose values can be compared with ==: 3.0 becomes 3, a fraction loses what rounding may have changed, a blob becomes bytes."""
    return [tuple(_plain_value(value) for value in row) for row in rows]


def _plain_value(value: Any) -> Any:
    if isinstance(value, list):
        return bytes.fromhex(value[0])
    if isinstance(value, float) and abs(value) < 2**53:
        rounded = value if value.is_integer() else float(f"{value:.9g}")
        return int(rounded) if rounded.is_integer() else rounded
    return value


def _difference(wanted: _Wanted, columns: int, rows: list[Row], ordered: bool) -> tuple[str, str] | None:
    """(reason, what differed), or None where nothing does."""
    if columns != wanted.columns:
        return "other columns", f"{_count(columns, 'column')} instead of {wanted.columns}"
    if rows == wanted.rows:
        return None
    counts = Counter(rows)
    if counts != wanted.counts:
        number = (
            f"{_count(len(rows), 'row')} instead of {len(wanted.rows)}"
            if len(rows) != len(wanted.rows)
            else ""
        )
        missing, extra = next(iter(wanted.counts - counts), None), next(iter(counts - wanted.counts), None)
        first = (
            f"first missing: {short(missing)}"
            if missing is not None
            else f"first that should not be: {short(extra)}"
        )
        if missing is not None and extra is not None and not number:
            first = f"{short(extra)} instead of {short(missing)}"
        return "other rows", "; ".join(filter(None, (number, first)))
    if not ordered:
        return None
    begin = 0
    for end in wanted.blocks:
        if Counter(rows[begin:end]) != Counter(wanted.rows[begin:end]):
            return (
                "other order",
                f"row {begin + 1} is {short(rows[begin])} instead of {short(wanted.rows[begin])}",
            )
        begin = end
    return None


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# --- fillings


@functools.lru_cache(maxsize=4096)
def _focus(where: str, reference: str) -> Focus:
    """The columns that the reference mentions, each with those of the reference's values that can occur in it.

    Raises:
        InputError: the domain cannot be read, or is not one of SQL.
    """
    texts = {first or second for first, second in re.findall(r"'((?:[^']|'')*)'|\"([^\"]*)\"", reference)}
    rest = re.sub(r"'(?:[^']|'')*'|\"[^\"]*\"", " ", reference)
    numbers = {
        sign * int(digits) for digits in re.findall(r"(?<![\w.])\d{1,15}(?![\w.])", rest) for sign in (1, -1)
    }
    words = set(re.findall(r"\w+", reference.lower()))
    found = []
    for name, table in _tables(where).items():
        for column_name, column in table.columns.items():
            if not {name.lower(), column_name.lower()} <= words:
                continue
            values: list[str | int] = []
            if isinstance(column, Whole):
                values = [number for number in sorted(numbers) if column.low - 1 <= number <= column.high + 1]
            elif isinstance(column, Among | Unique):
                can_be = _values(where, column) if isinstance(column, Among) else column.texts()
                values = [value for value in can_be if value in numbers or value in texts]
            if values:
                found.append((name, column_name, tuple(values)))
    return tuple(found)


def _tables(where: str) -> dict[str, Table]:
    verify = load_spec(where).verify
    if not isinstance(verify, ByQuery):
        raise InputError(f"{where}: verify.kind is {verify.kind!r}, not 'sql'")
    return verify.tables


def _values(where: str, column: Among) -> list[str | int]:
    slot = load_spec(where).slots.get(column.slot)
    if not isinstance(slot, Choice):
        return column.values
    return list(dict.fromkeys(slot.values.values() if isinstance(slot.values, dict) else slot.values))


@functools.lru_cache(maxsize=2048)
def _table(where: str, name: str, focus: Focus, filling: int) -> str:
    """One table of a filling as JSON: types of columns and rows, in an order that no column has. `focus`: its own columns'."""
    table = _tables(where)[name]
    wanted = {column: (place, values) for place, (_, column, values) in enumerate(focus)}
    columns, types = [], {}
    for column_name, column in table.columns.items():
        place, values = wanted.get(column_name, (0, ()))
        lean = LEANS[
            (filling + place * (filling // len(LEANS))) % len(LEANS)
        ]  # the columns lean alike, then differently
        rng = stream("filling", filling, name, column_name)
        drawn = _column(where, column, table.rows, rng, values, lean)
        columns.append(drawn)
        types[column_name] = "TEXT" if any(isinstance(value, str) for value in drawn) else "INTEGER"
    return json.dumps({"columns": types, "rows": list(zip(*columns, strict=True))})


def _column(
    where: str, column: Column, count: int, rng: random.Random, wanted: Sequence[str | int], lean: int | None
) -> list[Any]:
    """`count` values of a column; `wanted` are those of the reference that it should have, `lean` is explained at `LEANS`."""
    drawn: list[Any] = []
    if isinstance(column, Key):
        return rng.sample(range(1, count + 1), count)
    if isinstance(column, Unique):
        drawn = list(wanted[:count])
        drawn += rng.sample([text for text in column.texts() if text not in wanted], count - len(drawn))
        rng.shuffle(drawn)
        return drawn
    if isinstance(column, Refers):
        keys = _tables(where)[column.to].rows
        return rng.choices(rng.sample(range(1, keys + 1), keys - keys // 8), k=count)
    if isinstance(column, Among):
        values = _values(where, column)
        order = rng.sample(values, len(values))
        anything = rng.choices(
            order, [1 / (place + 1) for place in range(len(order))], k=count
        )  # some are frequent, some rare
        return [rng.choice(wanted) if wanted and rng.random() < 0.5 else value for value in anything]
    numbers = [value for value in wanted if isinstance(value, int)]
    near = sorted(
        {n + step for n in numbers for step in (-1, 0, 1)} & set(range(column.low, column.high + 1))
    )
    if column.repeats == "never":
        others = [n for n in range(column.low, column.high + 1) if n not in near]
        near = near[:count]
        drawn = near + rng.sample(others, count - len(near))
        rng.shuffle(drawn)
        return drawn
    for _ in range(count):
        value, kind = rng.randint(column.low, column.high), rng.random()
        if near and kind < 0.2:
            value = rng.choice(near)
        elif numbers and lean is not None and kind < 0.7:
            value = min(max(rng.choice(numbers) + lean, column.low), column.high)
        elif drawn and kind > 0.85:
            value = rng.choice(drawn)  # so that DISTINCT matters, whatever the range
        drawn.append(value)
    return drawn


# --- workers


class _Worker:
    """A process that runs queries: see `sql_worker` for what it is asked and answers."""

    def __init__(self) -> None:
        self.loaded: dict[str, None] = {}  # names of its databases, oldest first
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", sql_worker.__file__, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={
                name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ
            },  # some Pythons cannot start without
            cwd="/",
            start_new_session=True,
        )

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The reply to one request.

        Raises:
            TimeoutError: there is none after `seconds`. EOFError: the process has ended.
        """
        return json.loads(self._exchange(json.dumps(request).encode(), time.monotonic() + seconds))

    def _exchange(self, content: bytes, deadline: float) -> bytes:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(len(content).to_bytes(4, "big") + content)
            self.process.stdin.flush()
        except OSError:
            raise EOFError from None
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        reply, size = bytearray(), 4
        while len(reply) < size:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError
            part = os.read(self.process.stdout.fileno(), 1 << 20)
            reply += part
            if len(reply) >= 4:
                size = 4 + int.from_bytes(reply[:4], "big")
            if not part or size > MOST_REPLY:
                raise EOFError
        return bytes(reply[4:])

    def end(self) -> int:
        """Ends it, if it has not ended, and returns its exit status: negative for a signal."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        return self.process.wait()


class _Workers:
    """The processes that wait for work. A thread takes one, or starts one, and puts it back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.idle: list[_Worker] = []
        # A worker dies with the thread that started it, so one thread that never ends starts them all.
        self.starter = ThreadPoolExecutor(1, thread_name_prefix="sql-worker-starter")

    def take(self, name: str) -> _Worker:
        """An idle worker, one that has the database `name` if there is one.

        Raises:
            OSError, RuntimeError: no process can be started.
        """
        with self.lock:
            while self.idle:
                worker = next((worker for worker in self.idle if name in worker.loaded), self.idle[-1])
                self.idle.remove(worker)
                if worker.process.poll() is None:
                    return worker
                worker.end()
        return self.starter.submit(_Worker).result()

    def put(self, worker: _Worker) -> None:
        with self.lock:
            if len(self.idle) < KEPT_WORKERS:
                self.idle.append(worker)
                return
        worker.end()

    def end(self) -> None:
        with self.lock:
            while self.idle:
                self.idle.pop().end()


_workers = _Workers()


def _forget() -> None:
    """After a fork the workers are the parent's."""
    global _workers
    _workers = _Workers()


os.register_at_fork(after_in_child=_forget)
atexit.register(lambda: _workers.end())


def _ask(
    where: str, focus: Focus, filling: int, backwards: bool, sql: str, seconds: float
) -> tuple[dict[str, Any], float]:
    """A worker's reply to a query, and the seconds it took.

    Raises:
        InputError: no worker can be started.
    """
    if not sql.strip() or len(sql) > LONGEST:
        return {"invalid": "empty" if len(sql) <= LONGEST else f"longer than {LONGEST:,} characters"}, 0.0
    if not sql.isascii() and any("\ud800" <= character <= "\udfff" for character in sql):
        return {"invalid": "not valid Unicode"}, 0.0
    if "\0" in sql:
        return {"invalid": "has a NUL character"}, 0.0
    name = json.dumps([where, focus, filling, backwards])
    worker = None
    try:
        worker = _workers.take(name)
        if name not in worker.loaded:
            _load(worker, name, where, focus, filling, backwards)
    except (OSError, RuntimeError, EOFError) as error:
        if worker:
            worker.end()
        raise InputError(f"the SQLite worker cannot be started: {error or 'it does not answer'}") from None
    start = time.perf_counter()
    try:
        if seconds <= 0:
            raise TimeoutError
        reply = worker.ask({"query": sql, "of": name, "seconds": seconds}, seconds + sql_worker.GRACE)
    except TimeoutError:
        reply = {"failed": "ran too long"}
    except (EOFError, ValueError):
        reply = {"failed": "ran too long" if worker.end() == -signal.SIGALRM else "used too much memory"}
    spent = time.perf_counter() - start
    if reply.get("failed") == "ran too long":
        reply = {"failed": f"ran longer than {SECONDS:g} s"}
    if "rows" in reply or "invalid" in reply:
        _workers.put(worker)
    else:  # what it may have left behind is not worth knowing
        worker.end()
    return reply, spent


def _load(worker: _Worker, name: str, where: str, focus: Focus, filling: int, backwards: bool) -> None:
    if len(worker.loaded) >= KEPT_DATABASES:
        oldest = next(iter(worker.loaded))
        worker.ask({"drop": oldest}, LOAD_SECONDS)
        del worker.loaded[oldest]
    tables = {
        table: json.loads(_table(where, table, tuple(f for f in focus if f[0] == table), filling))
        for table in _tables(where)
    }
    if backwards:
        for table in tables.values():
            table["rows"].reverse()
    worker.ask({"load": name, "tables": tables}, LOAD_SECONDS)
    worker.loaded[name] = None
