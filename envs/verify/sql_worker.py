"""Runs queries over in-memory databases in a process that can be killed: `python -I -S sql_worker.py PARENT`, started by `envs.verify.sql`.

It needs the standard library alone, so that it starts in some 20 ms. Requests and replies are JSON after their length (4 bytes):

    {"load": name, "tables": {table: {"columns": {column: type}, "rows": [[...]]}}}   -> {"loaded": name}
    {"drop": name}                                                                    -> {"dropped": name}
    {"query": sql, "of": name, "seconds": s}  -> {"columns": n, "rows": [[...]]} | {"invalid": why} | {"failed": why}

`invalid`: it is not one read-only SELECT that SQLite can prepare. `failed`: it could be prepared but gave no result. In rows a blob is
["its hexadecimal digits"].

What holds a query: SQLite's authorizer (only SELECT, only the tables that were loaded, only the functions listed here) and its limits; a
handler that interrupts it; and for what the handler cannot interrupt, limits of the process: a timer that ends it, memory, no file that
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
from typing import Any

MEMORY = 128 * 2**20  # bytes, of address space, the interpreter's own 15 MB included
HEAP = 64 * 2**20  # bytes that SQLite may use, so that the interpreter can still answer
GRACE = 0.3  # seconds after which a query that the handler could not interrupt is killed
MOST_ROWS, MOST_BYTES = 10_000, 2**20  # of a result
FUNCTIONS = """
    abs avg ceil ceiling char coalesce concat concat_ws count cume_dist date datetime dense_rank exp first_value floor glob group_concat
    hex ifnull iif instr julianday lag last_value lead length like likelihood likely ln log log10 log2 lower ltrim max min mod nth_value
    ntile nullif percent_rank pi pow power quote rank replace round row_number rtrim sign sqrt strftime string_agg substr substring sum
    time total trim trunc typeof unicode unixepoch unlikely upper
"""
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
SELECT = re.compile(r"(?:\s+|--[^\n]*(?:\n|$)|/\*.*?\*/)*(?:select|with|values)\b", re.I | re.S | re.A)


def confine(parent: int) -> None:
    """Limits this process, for good."""
    with contextlib.suppress(OSError, AttributeError):  # not on Linux: the end of its input ends it
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it ended before that
        os._exit(0)
    os.chdir("/")
    for name, most in {"AS": MEMORY, "FSIZE": 0, "CORE": 0, "NPROC": 0, "NOFILE": 3}.items():
        limit = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard),) * 2)


def open_database(tables: dict[str, Any]) -> sqlite3.Connection:
    """A database with these tables and no index, so that rows come in the order in which they were put in. Nothing can be written to it."""
    database = sqlite3.connect(":memory:", isolation_level=None, cached_statements=0)
    database.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
    for pragma in (
        "temp_store=MEMORY",
        "trusted_schema=OFF",
        "cell_size_check=ON",
        f"hard_heap_limit={HEAP}",
    ):
        database.execute(f"PRAGMA {pragma}").fetchall()
    database.execute("BEGIN")
    for name, table in tables.items():
        columns = ", ".join(f'"{column}" {kind}' for column, kind in table["columns"].items())
        database.execute(f'CREATE TABLE "{name}" ({columns})')
        database.executemany(
            f'INSERT INTO "{name}" VALUES ({", ".join("?" * len(table["columns"]))})', table["rows"]
        )
    database.execute("COMMIT")
    database.execute("PRAGMA query_only=ON")
    known, functions = {name.lower() for name in tables}, set(FUNCTIONS.split())

    def authorize(action: int, first: str | None, second: str | None, *_: object) -> int:
        allowed = (
            action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE)
            or (
                action == sqlite3.SQLITE_READ and (str(first).lower() in known or not second)
            )  # no column: COUNT(*) of a WITH
            or (action == sqlite3.SQLITE_FUNCTION and str(second).lower() in functions)
        )
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY

    for limit, most in LIMITS.items():
        database.setlimit(limit, most)
    database.set_authorizer(authorize)
    return database


def query(database: sqlite3.Connection, sql: str, seconds: float) -> dict[str, Any]:
    """The result of one query, or why there is none.

    Args:
        database: see `open_database`.
        sql: the text of one statement.
        seconds: wall time after which it is interrupted; the process dies `GRACE` later.
    """
    if not SELECT.match(sql):
        return {"invalid": "not a SELECT"}
    end = time.monotonic() + seconds
    database.set_progress_handler(lambda: time.monotonic() > end, 1000)
    signal.setitimer(
        signal.ITIMER_REAL, seconds + GRACE
    )  # the signal is not handled: it ends the process, whatever it is at
    prepared = False
    try:
        database.execute(f"EXPLAIN {sql}").close()  # prepares it without running it
        prepared = True
        cursor = database.execute(sql)
        rows: list[list[Any]] = []
        size = 0
        for row in cursor:
            size += sum(8 + (len(value) if isinstance(value, (str, bytes)) else 0) for value in row)
            if len(rows) == MOST_ROWS or size > MOST_BYTES:
                return {"failed": "too many rows"}
            rows.append([[value.hex()] if isinstance(value, bytes) else value for value in row])
        return {"columns": len(cursor.description), "rows": rows}
    except MemoryError:
        return {"failed": "used too much memory"}
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        if time.monotonic() > end:
            return {"failed": "ran too long"}
        return {"failed" if prepared else "invalid": " ".join(str(error).split())[:200]}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


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
            reply = query(databases[request["of"]], request["query"], request["seconds"])
        content = json.dumps(reply).encode()
        sys.stdout.buffer.write(len(content).to_bytes(4, "big") + content)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    confine(int(sys.argv[1]))
    serve()
