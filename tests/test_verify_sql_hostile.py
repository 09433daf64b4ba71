"""Queries: what hostile statements can do, and the processes that run them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from envs.verify import sql_pool, sql_worker
from envs.verify.sql import compare

REFERENCE = "SELECT name FROM employees WHERE city = 'Rome' AND age > 30"
ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)"

LONG = """(WITH RECURSIVE d(s) AS (SELECT 'aaaaaaaaaa' UNION ALL SELECT s || s FROM d WHERE length(s) < 5000)
    SELECT s FROM d ORDER BY 1 DESC LIMIT 1)"""
MANY = "employees a, employees b, employees c, employees d, employees e"


def nested(start: str, inside: str, end: str, depth: int) -> str:
    return "SELECT " + start * depth + inside + end * depth


DENIED = [
    "ATTACH DATABASE 'evil.db' AS x",
    "ATTACH ':memory:' AS x",
    "DETACH main",
    "PRAGMA journal_mode = WAL",
    "PRAGMA hard_heap_limit = 0",
    "SELECT * FROM pragma_database_list",
    "SELECT COUNT(*) FROM pragma_function_list",
    "VACUUM",
    "VACUUM INTO 'evil.db'",
    "SELECT load_extension('evil.so')",
    "SELECT readfile('/etc/passwd')",
    "SELECT writefile('evil', 'x')",
    "SELECT edit('x')",
    "SELECT fts3_tokenizer('x')",
    "INSERT INTO employees (id) VALUES (1)",
    "UPDATE employees SET age = 1",
    "DELETE FROM employees",
    "REPLACE INTO employees (id) VALUES (1)",
    "WITH x AS (SELECT 1) DELETE FROM employees",
    "DROP TABLE employees",
    "CREATE TABLE x (y)",
    "CREATE TEMP TABLE x AS SELECT * FROM employees",
    "CREATE VIEW v AS SELECT 1",
    "CREATE INDEX i ON employees (age)",
    "CREATE TRIGGER t AFTER INSERT ON orders BEGIN SELECT 1; END",
    "CREATE VIRTUAL TABLE f USING fts5(a)",
    "ALTER TABLE employees RENAME TO x",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT s",
    "RELEASE s",
    "REINDEX",
    "ANALYZE",
    "EXPLAIN SELECT 1",
    "EXPLAIN QUERY PLAN SELECT 1",
    "QUERY PLAN SELECT 1",
    ".read /etc/passwd",
    ".shell id",
    ".dump",
    'sqlite3 x.db "SELECT 1"',
    "SELECT printf('%.*c', 900000000, 'x')",
    "SELECT format('%.*c', 900000000, 'x')",
    "SELECT zeroblob(900000000)",
    "SELECT randomblob(900000000)",
    "SELECT hex(zeroblob(100000))",
    "SELECT random()",
    "SELECT sqlite_source_id()",
    "SELECT json('" + "[" * 4000 + "]" * 4000 + "')",
    f"SELECT json_group_array(a.name) FROM {MANY}",
    "SELECT * FROM json_each('[1, 2]')",
    "SELECT json_array(json_array(1))",
    "SELECT * FROM generate_series(1, 1000000000)",
    "SELECT * FROM sqlite_master",
    "SELECT * FROM dbstat",
    "SELECT * FROM fts5vocab('a', 'b')",
    "SELECT name FROM employees WHERE name MATCH 'a'",
    "SELECT name FROM employees WHERE name REGEXP '(a+)+b'",
    "",
    "  ",
    "\t\n",
    ";",
    "-- a comment",
    "/* a comment",
    "/* a */",
    "-- " * 3000,
    "/*" * 4999,
    "SELECT",
    "SELECT 1; DROP TABLE employees",
    "SELECT 1; SELECT 2",
    "SELECT '\0'",
    "SELECT 1\0; DROP TABLE employees",
    "\ud800",
    "SELECT '\udfff'",
    "\ufeffSELECT 1",
    "SELECT 'x",
    "SELECT [",
    "SELECT ?",
    "SELECT ?32766",
    "SELECT :a",
    "x" * 10_000_000,
    "SELECT '" + "x" * 10_000_000 + "'",
    " " * 10_000_000 + "SELECT 1",
    "SELECT name INTO OUTFILE 'evil' FROM employees",
    "COPY employees TO PROGRAM 'id'",
    "TABLE employees",
    "SELECT raise(ABORT, 'x')",
]
BOMBS = [
    nested("(", "1", ")", 4900),
    nested("NOT ", "1", "", 2000),
    nested("(SELECT ", "1", ")", 900),
    nested("abs(", "1", ")", 1500),
    nested("CASE WHEN 1 THEN ", "1", " END", 400),
    nested("(SELECT * FROM ", "employees", ")", 400),
    "SELECT " + "+".join("1" * 4900),
    " UNION ".join(["SELECT 1"] * 800),
    "SELECT " + ",".join("1" * 3000),
    "SELECT " + ",".join("*" * 200) + " FROM employees",
    "SELECT 1 FROM " + " NATURAL JOIN ".join(f"employees t{i}" for i in range(70)),
    f"{ENDLESS} SELECT COUNT(*) FROM c",
    f"{ENDLESS} SELECT x FROM c",
    f"{ENDLESS} SELECT SUM(x) FROM c",
    f"{ENDLESS} SELECT x FROM c ORDER BY x DESC",
    f"{ENDLESS} SELECT group_concat(x) FROM c",
    f"{ENDLESS} SELECT x, row_number() OVER (ORDER BY x) FROM c",
    "WITH RECURSIVE c(x) AS (SELECT 'a' UNION ALL SELECT x || x FROM c) SELECT x FROM c",
    "WITH RECURSIVE c(x) AS (SELECT 'a' UNION SELECT x || 'a' FROM c) SELECT COUNT(*) FROM c",
    f"SELECT COUNT(*) FROM {MANY}",
    f"SELECT * FROM {MANY}",
    f"SELECT a.name FROM {MANY} ORDER BY a.age * b.age * c.age",
    f"SELECT COUNT(DISTINCT a.id * b.id * c.id) FROM {MANY}",
    f"SELECT a.id FROM {MANY} GROUP BY a.id, b.id, c.id, d.id",
    f"SELECT replace({LONG}, 'a', {LONG})",
    f"SELECT SUM(instr({LONG}, substr({LONG}, 1, 4000) || 'b')) FROM {MANY}",
    f"SELECT SUM(length(replace({LONG}, 'aaaab', 'c'))) FROM {MANY}",
    f"SELECT group_concat({LONG}) FROM {MANY}",
    f"SELECT hex(hex(hex({LONG})))",
    f"SELECT quote({LONG} || {LONG})",
    f"SELECT upper({LONG}) FROM {MANY}",
    f"SELECT COUNT(*) FROM {MANY} WHERE a.name || {LONG} LIKE '%a%a%a%a%a%a%a%a%a%b'",
    f"SELECT {LONG} LIKE '{'%a' * 24}%b'",
    f"SELECT {LONG} GLOB '{'*a' * 40}*b'",
    f"SELECT {LONG} LIKE '{'%_' * 49}b'",
    f"SELECT trim({LONG}, {LONG}) FROM {MANY}",
    f"SELECT a.name || '{'x' * 9000}' FROM employees a, employees b",
    "SELECT t0.age FROM " + ", ".join(f"employees t{i}" for i in range(64)),
    "SELECT COUNT(*) FROM employees t0"
    + "".join(f" JOIN employees t{i} ON t{i}.age > t{i - 1}.age" for i in range(1, 40)),
    "WITH a0 AS (SELECT * FROM employees)"
    + "".join(f", a{i} AS (SELECT x.id FROM a{i - 1} x, a{i - 1} y)" for i in range(1, 25))
    + " SELECT COUNT(*) FROM a24",
    "WITH a0(i) AS (SELECT 1)"
    + "".join(f", a{i}(i) AS (SELECT i FROM a{i - 1} UNION ALL SELECT i FROM a{i - 1})" for i in range(1, 40))
    + " SELECT 1 FROM a39",
    "SELECT SUM(a.age) OVER (ORDER BY a.age, b.age, c.age ROWS 100000 PRECEDING)"
    " FROM employees a, employees b, employees c",
    "SELECT group_concat(a.name) OVER () FROM employees a, employees b",
    "SELECT ntile(1000000000) OVER (ORDER BY id) FROM orders",
    "SELECT name FROM employees WHERE id IN (" + ",".join(map(str, range(2000))) + ")",
    "VALUES " + ",".join(["(1)"] * 2400),
    "SELECT " + "/**/" * 2400 + "1",
    "SELECT x'" + "00" * 4900 + "'",
    "SELECT CAST(x'ff00fe' AS TEXT)",
    "SELECT abs(-9223372036854775808)",
    "SELECT SUM(9223372036854775807) FROM employees",
    "SELECT strftime('" + "%s" * 2000 + "', 'now')",
    "SELECT date('now', '+1000000000 days')",
    "SELECT name FROM employees LIMIT -1 OFFSET 9223372036854775807",
    "SELECT '\U0001f600'",
    "SELECT char(55296)",
]


def lines_of(pid: int, name: str) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8").splitlines()
    return {line.split()[0].rstrip(":") if name == "status" else line[:25].strip(): line for line in lines}


@pytest.mark.slow
def test_hostile_statements_end_in_time_and_memory_create_nothing_and_leave_the_workers_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is denied ends at once; what may run ends with its second of processor time."""
    monkeypatch.setattr(sql_pool, "PATIENCE", 300.0)  # for busy machines
    assert len(DENIED) + len(BOMBS) > 40
    here = [Path.cwd(), Path("/"), tmp_path, Path(__file__).parent]
    before, peaks, done = [set(folder.iterdir()) for folder in here], [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            for pid in workers_of(os.getpid()):
                try:
                    peaks.append(int(lines_of(pid, "status")["VmPeak"].split()[1]))
                except (OSError, KeyError):
                    continue

    thread = threading.Thread(target=watch)
    thread.start()
    os.environ["SECRET"] = "visible"
    try:
        slowest = 0.0
        for statement in [*DENIED, *BOMBS]:
            start = time.perf_counter()
            verdict = compare("sql", REFERENCE, statement, False)
            slowest = max(slowest, time.perf_counter() - start)
            # what parses depends on the version of SQLite
            assert verdict.status == "invalid" or (verdict.status == "wrong" and statement in BOMBS), (
                statement[:100],
                verdict,
            )
            assert verdict.reason.isprintable() and len(verdict.reason) < 250
    finally:
        done.set()
        thread.join()
        del os.environ["SECRET"]
    assert max(peaks) * 1024 <= sql_worker.MEMORY == 128 * 2**20
    assert [set(folder.iterdir()) for folder in here] == before
    start = time.perf_counter()
    assert compare("sql", REFERENCE, REFERENCE, False).correct
    print(f"slowest {slowest:.2f} s, most memory {max(peaks) / 1024:.0f} MiB")


def workers_of(parent: int) -> list[int]:
    """Processes that run the worker's script for `parent`."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if sql_worker.__file__.encode() in words and str(parent).encode() in words:
                found.append(int(folder.name))
    return found


@pytest.fixture
def worker() -> Iterator[sql_pool._Worker]:
    assert compare("sql", REFERENCE, REFERENCE, False).correct
    return sql_pool._workers.idle[-1]


def test_a_worker_has_nothing_but_its_pipes(worker: sql_pool._Worker) -> None:
    pid = worker.process.pid
    limits = {name: line[25:].split()[:2] for name, line in lines_of(pid, "limits").items()}
    assert limits["Max address space"] == [str(128 * 2**20)] * 2
    assert limits["Max file size"] == limits["Max core file size"] == limits["Max processes"] == ["0", "0"]
    assert limits["Max open files"] == ["3", "3"]
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    assert {path.name for path in Path(f"/proc/{pid}/fd").iterdir()} == {"0", "1", "2"}
    assert set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")) <= {
        b"",
        f"LD_LIBRARY_PATH={os.environ.get('LD_LIBRARY_PATH')}".encode(),
    }
    assert b"torch" not in Path(f"/proc/{pid}/maps").read_bytes()


def test_a_worker_that_does_not_answer_is_replaced_and_says_nothing_of_the_query(
    worker: sql_pool._Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_pool, "PATIENCE", 0.5)
    os.kill(worker.process.pid, signal.SIGSTOP)  # the machine has no time for it
    verdict = compare("sql", REFERENCE, REFERENCE, False)
    assert verdict.status == "not_executed"
    assert verdict.reason.startswith("the SQLite worker did not answer within 0.5 s: evaluate again when ")
    assert worker.process.poll() == -signal.SIGKILL
    assert compare("sql", REFERENCE, REFERENCE, False).correct


def test_a_query_that_waits_for_the_processor_is_right_all_the_same(worker: sql_pool._Worker) -> None:
    """The worker stands still for longer than a query may take."""
    os.kill(worker.process.pid, signal.SIGSTOP)
    wake = threading.Timer(
        sql_pool.SECONDS + sql_worker.GRACE + 0.2, worker.process.send_signal, [signal.SIGCONT]
    )
    wake.start()
    assert compare("sql", REFERENCE, REFERENCE, False).correct
    wake.join()
    assert sql_pool._workers.idle[-1] is worker


def test_a_worker_that_is_killed_at_work_says_nothing_of_the_query(worker: sql_pool._Worker) -> None:
    os.kill(worker.process.pid, signal.SIGSTOP)
    wake = threading.Timer(0.2, worker.process.kill)  # as the kernel does where memory runs out
    wake.start()
    verdict = compare("sql", REFERENCE, REFERENCE, False)
    assert (verdict.status, verdict.reason.partition(":")[0]) == (
        "not_executed",
        "the SQLite worker was killed",
    )
    wake.join()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_died_while_idle_is_replaced(worker: sql_pool._Worker, number: int) -> None:
    worker.process.send_signal(number)
    worker.process.wait()
    assert compare("sql", REFERENCE, REFERENCE, False).correct


DEAF = """
import sqlite3, sys
from envs.verify import sql_worker

class Deaf(sqlite3.Connection):
    def set_progress_handler(self, *_):
        pass

sql_worker.query(sqlite3.connect(":memory:", factory=Deaf), sys.argv[1], 0.05)
"""


def test_a_worker_ends_itself_where_sqlite_does_not_let_it_interrupt() -> None:
    """By its own timer of processor time, which ends it whatever it is doing."""
    endless = f"{ENDLESS} SELECT COUNT(*) FROM c"
    done = subprocess.run([sys.executable, "-c", DEAF, endless], check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (-signal.SIGPROF, b"")


@pytest.mark.slow
def test_many_threads() -> None:
    queries = [REFERENCE, f"{ENDLESS} SELECT COUNT(*) FROM c", "SELECT 1", "nonsense", REFERENCE + " AND 1"]
    with ThreadPoolExecutor(6) as pool:
        statuses = list(
            pool.map(lambda number: compare("sql", REFERENCE, queries[number % 5], False).status, range(30))
        )
    assert statuses == ["correct", "wrong", "wrong", "invalid", "correct"] * 6
    assert compare("sql", REFERENCE, REFERENCE, False).correct  # though the threads that asked first are gone
    assert len(workers_of(os.getpid())) <= sql_pool.KEPT_WORKERS


KILLED = """
import sys, threading, time
from envs.verify.sql import compare
reference = "SELECT COUNT(*) FROM employees"
assert compare("sql", reference, reference, False).correct
threading.Thread(target=compare, args=("sql", reference, sys.argv[1], False)).start()
time.sleep(0.1)
print("running", flush=True)
time.sleep(60)
"""


def test_sigkill_of_the_parent_leaves_no_worker() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", KILLED, f"{ENDLESS} SELECT COUNT(*) FROM c"], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout and parent.stdout.readline() == "running\n"
    assert workers_of(parent.pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 0.5  # before the query's own time is over
    while workers_of(parent.pid) and time.monotonic() < end:
        time.sleep(0.02)
    assert workers_of(parent.pid) == []


def test_an_orphan_does_not_start() -> None:
    started = subprocess.run(
        [sys.executable, "-I", "-S", sql_worker.__file__, "1"], input=b"", capture_output=True, timeout=30
    )
    assert (started.returncode, started.stdout, started.stderr) == (0, b"", b"")


def test_a_fork_has_workers_of_its_own() -> None:
    assert compare("sql", REFERENCE, REFERENCE, False).correct
    code = f"""
import os
from envs.verify.sql import compare
assert compare("sql", {REFERENCE!r}, {REFERENCE!r}, False).correct
child = os.fork()
if not child:
    os._exit(0 if compare("sql", {REFERENCE!r}, {REFERENCE!r}, False).correct else 3)
assert os.waitpid(child, 0)[1] == 0
assert compare("sql", {REFERENCE!r}, {REFERENCE!r}, False).correct
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def test_a_comparison_is_fast() -> None:
    """About 2 ms once the reference is known; the bound is loose, for busy machines."""
    times = []
    for _ in range(20):
        start = time.perf_counter()
        assert compare("sql", REFERENCE, REFERENCE + " ORDER BY name", False).correct
        times.append(time.perf_counter() - start)
    assert sorted(times)[10] < 0.03
