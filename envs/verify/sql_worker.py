"""Runs queries over in-memory databases, in a process that can be killed. `sql_pool` starts it as

    python -I -S sql_worker.py PARENT

It needs only the standard library, to start in about 20 ms. Requests and replies are JSON after their length
(4 bytes):

    {"load": name, "tables": {table: {"columns": {column: type}, "rows": [[...]]}}}  ->  {"loaded": name}
    {"drop": name}  ->  {"dropped": name}
    {"query": sql, "of": name, "seconds": s}  ->  {"columns": n, "rows": [[...]], "spent": s}
                                              or  {"invalid": why, "spent": s} or {"failed": why, "spent": s}

`invalid`: it is not one read-only SELECT that SQLite can prepare. `failed`: it could be prepared but gave
no result. In rows a blob is ["its hexadecimal digits"]. Seconds are processor time: a query needs no more of
it on a busy machine than on an idle one.

What holds a query:

- SQLite's authorizer: only SELECT, only the tables that were loaded, only the functions listed here;
- SQLite's limits, and a handler that interrupts it;
- for what the handler cannot interrupt, limits of the process: a timer that ends it, memory, no file that
  could be opened or grown, no child, and death with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

MEMORY = 128 * 2**20  # bytes of address space, the interpreter's own 15 MB included
HEAP = 64 * 2**20  # bytes that SQLite may use; the rest lets the interpreter still answer
GRACE = 0.3  # seconds of processor time after which a query that the handler could not interrupt is killed
MAX_ROWS, MAX_BYTES = 10_000, 2**20  # of a result
TOO_LONG = "ran too long"
FUNCTIONS = """
    abs avg ceil ceiling char coalesce concat concat_ws count cume_dist date datetime dense_rank exp
    first_value floor glob group_concat hex ifnull iif instr julianday lag last_value lead length like
    likelihood likely ln log log10 log2 lower ltrim max min mod nth_value ntile nullif percent_rank pi
    pow power quote rank replace round row_number rtrim sign sqrt strftime string_agg substr substring
    sum time total trim trunc typeof unicode unixepoch unlikely upper
"""
ALLOWED_FUNCTIONS = set(FUNCTIONS.split())
LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 10_000,  # bytes of a text, a blob, a row: what makes most bombs harmless
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 10_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 100,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 20,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 25_000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 20,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 100,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 1,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
PROCESS_LIMITS = {
    resource.RLIMIT_AS: MEMORY,
    resource.RLIMIT_FSIZE: 0,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NPROC: 0,
    resource.RLIMIT_NOFILE: 3,
}
SELECT = re.compile(r"(?:\s+|--[^\n]*(?:\n|$)|/\*.*?\*/)*(?:select|with|values)\b", re.I | re.S | re.A)


def confine(parent: int) -> None:
    """Limits this process; nothing can undo it."""
    with contextlib.suppress(OSError, AttributeError):  # not on Linux: there it ends with its input
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it ended before that
        os._exit(0)
    os.chdir("/")
    for limit, wanted in PROCESS_LIMITS.items():
        hard = resource.getrlimit(limit)[1]
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(limit, (most, most))


def open_database(tables: dict[str, Any]) -> sqlite3.Connection:
    """A database with these tables that cannot be written to.

    It has no index, so rows come in the order in which they were put in.
    """
    database = sqlite3.connect(":memory:", isolation_level=None, cached_statements=0)
    database.text_factory = _text
    database.execute("PRAGMA temp_store=MEMORY")
    database.execute("PRAGMA trusted_schema=OFF")
    database.execute("PRAGMA cell_size_check=ON")
    database.execute(f"PRAGMA hard_heap_limit={HEAP}").fetchall()
    database.execute("BEGIN")
    for name, table in tables.items():
        columns = [f'"{column}" {kind}' for column, kind in table["columns"].items()]
        marks = ", ".join("?" * len(columns))
        database.execute(f'CREATE TABLE "{name}" ({", ".join(columns)})')
        database.executemany(f'INSERT INTO "{name}" VALUES ({marks})', table["rows"])
    database.execute("COMMIT")
    database.execute("PRAGMA query_only=ON")
    for limit, most in LIMITS.items():
        database.setlimit(limit, most)
    database.set_authorizer(_authorizer(tables))
    return database


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def _authorizer(tables: Iterable[str]) -> Callable[..., int]:
    """Says of each thing that a statement wants to do whether it may."""
    known = {name.lower() for name in tables}

    def allowed(action: int, first: str | None, second: str | None) -> bool:
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            return True
        if action == sqlite3.SQLITE_READ:  # of a table and its column; no column: COUNT(*) of a WITH
            return str(first).lower() in known or not second
        return action == sqlite3.SQLITE_FUNCTION and str(second).lower() in ALLOWED_FUNCTIONS

    def authorize(action: int, first: str | None, second: str | None, *_: object) -> int:
        return sqlite3.SQLITE_OK if allowed(action, first, second) else sqlite3.SQLITE_DENY

    return authorize


def query(database: sqlite3.Connection, sql: str, seconds: float) -> dict[str, Any]:
    """The result of one query, or why there is none.

    Args:
        database: see `open_database`.
        sql: the text of one statement.
        seconds: processor time after which it is interrupted; the process dies `GRACE` later.
    """
    if not SELECT.match(sql):
        return {"invalid": "not a SELECT"}
    end = time.process_time() + seconds
    database.set_progress_handler(lambda: time.process_time() > end, 1000)
    # The signal is not handled: it ends the process, whatever it is doing.
    signal.setitimer(signal.ITIMER_PROF, seconds + GRACE)
    prepared = False
    try:
        database.execute(f"EXPLAIN {sql}").close()  # prepares it without running it
        prepared = True
        return _fetch(database.execute(sql))
    except MemoryError:
        return {"failed": "used too much memory"}
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        if time.process_time() > end:
            return {"failed": TOO_LONG}
        message = " ".join(str(error).split())[:200]
        return {"failed": message} if prepared else {"invalid": message}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _fetch(cursor: sqlite3.Cursor) -> dict[str, Any]:
    rows: list[list[Any]] = []
    size = 0
    for row in cursor:
        written = []
        for value in row:
            size += 8
            if isinstance(value, (str, bytes)):
                size += len(value)
            written.append([value.hex()] if isinstance(value, bytes) else value)
        if len(rows) == MAX_ROWS or size > MAX_BYTES:
            return {"failed": "too many rows"}
        rows.append(written)
    return {"columns": len(cursor.description), "rows": rows}


def serve() -> None:
    """Answers requests until there are no more."""
    databases: dict[str, sqlite3.Connection] = {}
    while len(head := sys.stdin.buffer.read(4)) == 4:
        request = json.loads(sys.stdin.buffer.read(int.from_bytes(head, "big")))
        reply: dict[str, Any]
        if "load" in request:
            databases[request["load"]] = open_database(request["tables"])
            reply = {"loaded": request["load"]}
        elif "drop" in request:
            databases.pop(request["drop"]).close()
            reply = {"dropped": request["drop"]}
        else:
            began = time.process_time()
            reply = query(databases[request["of"]], request["query"], request["seconds"])
            reply["spent"] = time.process_time() - began
        content = json.dumps(reply).encode()
        sys.stdout.buffer.write(len(content).to_bytes(4, "big") + content)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    confine(int(sys.argv[1]))
    serve()
