"""Truth for queries: what counts as the same, what the fillings tell apart, and what hostile statements can do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from envs.domain import load_domain
from envs.grammar import ByQuery, Choice
from envs.schema import load_spec
from envs.types import InputError
from envs.verify import sql, sql_worker
from envs.verify.sql import compare
from envs.verify.truth import command_of, find_draw

REFERENCE = "SELECT name FROM employees WHERE city = 'Rome' AND age > 30"
TABLE = yaml.safe_load((Path(__file__).parent / "equivalence" / "sql.yaml").read_text(encoding="utf-8"))
STATUS = {"same": "correct", "other": "wrong", "invalid": "invalid"}
PAIRS = [
    (entry["reference"], entry.get("order") == "matters", command, STATUS[kind])
    for entry in TABLE
    for kind in STATUS
    for command in entry.get(kind, [])
]
ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)"


def references(count: int, seed: int) -> list[tuple[str, str, bool]]:
    """(intent, reference, whether order matters) of held-out tasks, intents in turn."""
    ordered = {intent.name: intent.order == "matters" for intent in load_spec("sql").intents}
    draws = [find_draw(task) for task in load_domain("sql").tasks("heldout", count, seed)]
    return [
        (draw.intent, command_of("sql", draw.intent, draw.values), ordered[draw.intent])
        for draw in draws
        if draw
    ]


# --- what counts as the same


@pytest.mark.parametrize(("reference", "ordered", "command", "status"), PAIRS)
def test_the_table_of_equivalent_and_look_alike_queries(
    reference: str, ordered: bool, command: str, status: str
) -> None:
    verdict = compare("sql", reference, command, ordered)
    assert verdict.status == status, verdict
    assert bool(verdict.reason) == (status != "correct") and bool(verdict.differed) == (status == "wrong")
    assert len(verdict.reason + verdict.differed) < 400 and (verdict.reason + verdict.differed).isprintable()


def test_the_table_is_large_and_has_every_intent() -> None:
    counts = Counter(status for *_, status in PAIRS)
    assert counts["correct"] >= 60 and counts["wrong"] >= 60 and counts["invalid"] >= 15
    patterns = [
        re.sub(r"\\{\w+\\}", r"\\w+", re.escape(intent.command)) for intent in load_spec("sql").intents
    ]
    assert [
        pattern
        for pattern in patterns
        if not any(re.fullmatch(pattern, entry["reference"]) for entry in TABLE)
    ] == []


@pytest.mark.parametrize(
    ("command", "ordered", "reason", "differed"),
    [
        (
            "SELECT name, age FROM employees WHERE age > 60",
            False,
            "other columns",
            r"filling 1: 2 columns instead of 1",
        ),
        (
            "SELECT name FROM employees WHERE age > 30",
            False,
            "other rows",
            r"filling 1: \d+ rows instead of \d+; first that should not be: .*",
        ),
        (
            "SELECT name FROM employees WHERE 0",
            False,
            "other rows",
            r"filling 1: 0 rows instead of \d+; first missing: \('[\w ]+',\)",
        ),
        (
            REFERENCE.replace("name", "UPPER(name)"),
            False,
            "other rows",
            r"filling 1: \('[A-Z ]+',\) instead of \('[\w ]+',\)",
        ),
        (
            REFERENCE + " ORDER BY name",
            True,
            "other order",
            r"filling 1: row \d+ is \('[\w ]+',\) instead of \('[\w ]+',\)",
        ),
    ],
)
def test_a_verdict_says_what_differed(command: str, ordered: bool, reason: str, differed: str) -> None:
    reference = REFERENCE + (" ORDER BY name DESC" if ordered else "")
    verdict = compare("sql", reference, command, ordered)
    assert (verdict.status, verdict.reason) == ("wrong", reason)
    assert re.fullmatch(differed, verdict.differed), verdict.differed
    assert 0 < verdict.seconds < 5


@pytest.mark.parametrize(
    ("reference", "command", "same"),
    [
        ("SELECT 3", "SELECT 3.0", True),
        ("SELECT 0.1 + 0.2", "SELECT 0.3", True),
        ("SELECT 1.0 / 3", "SELECT 0.333333333", True),
        ("SELECT 1.0 / 3", "SELECT 0.33333", False),
        ("SELECT 9007199254740993", "SELECT 9007199254740992", False),
        ("SELECT 3", "SELECT '3'", False),
        ("SELECT 'a'", "SELECT 'A'", False),
        ("SELECT 'a'", "SELECT 'a '", False),
        ("SELECT 'a'", "SELECT x'61'", False),
        ("SELECT x'61'", "SELECT CAST('a' AS BLOB)", True),
        ("SELECT NULL", "SELECT NULL", True),
        ("SELECT NULL", "SELECT 0", False),
        ("SELECT NULL", "SELECT 1 WHERE 0", False),
        ("SELECT 1e999", "SELECT 2e999", True),
        ("SELECT 1e999", "SELECT -1e999", False),
        ("VALUES (1), (1), (2)", "VALUES (2), (1), (1)", True),
        ("VALUES (1), (1), (2)", "VALUES (2), (2), (1)", False),
        ("SELECT 1, 2", "SELECT 2, 1", False),
    ],
)
def test_values(reference: str, command: str, same: bool) -> None:
    assert compare("sql", reference, command, False).status == ("correct" if same else "wrong")


def test_rows_that_the_reference_leaves_tied_may_come_in_any_order_and_no_others() -> None:
    reference = "SELECT name, age FROM employees ORDER BY age"
    for tail, same in [
        (", id", True),
        (", id DESC", True),
        (", name", True),
        (", salary DESC", True),
        (" DESC", False),
    ]:
        assert compare("sql", reference, reference + tail, True).correct is same, tail
    assert compare("sql", reference + ", name", reference + ", name", True).correct
    assert compare("sql", reference + ", name", reference, True).reason == "other order"
    assert (
        compare("sql", reference, "SELECT name, age FROM employees ORDER BY id", True).reason == "other order"
    )
    assert compare("sql", reference, "SELECT name, age FROM employees ORDER BY id", False).correct


def test_a_reference_that_fails_and_a_domain_without_tables_execute_nothing(tmp_path: Path) -> None:
    for reference, why in [
        ("SELECT nought FROM employees", "no such column"),
        (f"{ENDLESS} SELECT x FROM c", "too many rows"),
        ("", "empty"),
    ]:
        verdict = compare("sql", reference, REFERENCE, False)
        assert (
            verdict.status == "not_executed"
            and why in verdict.reason
            and "the reference fails" in verdict.reason
        )
    assert compare("shell", "ls", "ls", False).status == "not_executed"
    assert compare(str(tmp_path / "none.yaml"), REFERENCE, REFERENCE, False).status == "not_executed"


def test_no_worker_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    for nothing in ("/nonexistent/python", "/bin/true"):
        monkeypatch.setattr(sql, "_workers", sql._Workers())
        monkeypatch.setattr(sys, "executable", nothing)
        verdict = compare("sql", "SELECT 7 FROM employees", "SELECT 7 FROM employees", False)
        assert verdict.status == "not_executed" and "cannot be started" in verdict.reason


# --- fillings

COLUMNS = {
    "employees": ["name", "city", "department", "salary", "age"],
    "products": ["name", "category", "price", "stock"],
    "orders": ["quantity", "total", "customer_id", "product_id"],
}


def mutants(reference: str) -> set[str]:
    """The query with one thing changed, so that it asks for something else."""
    slots = {
        name: [str(value) for value in slot.values]
        for name, slot in load_spec("sql").slots.items()
        if isinstance(slot, Choice)
    }
    texts = [slots[name] for name in ("city", "department", "category")]
    table = re.findall(r"FROM (\w+)", reference)[0]
    found = set()

    def change(pattern: str, *changes: str | Any) -> None:
        for match in re.finditer(pattern, reference):
            for new in changes:
                for text in [new] if isinstance(new, str) else new(match):
                    found.add(reference[: match.start()] + match.expand(text) + reference[match.end() :])

    change(" > ", " >= ", " < ", " <> ")
    change(" < ", " <= ", " > ", " <> ")
    change(r"\b\d+\b", lambda match: [str(int(match[0]) + 1), str(int(match[0]) - 1)])
    change(r" LIMIT \d+", "")
    change(" ASC", " DESC")
    change(" DESC", " ASC")
    change(r" ORDER BY \w+ \w+", "")
    change(
        r"(AVG|MAX|MIN|SUM)\((\w+)\)",
        lambda match: [
            rf"{other}(\2)" for other in ("AVG", "MAX", "MIN", "SUM", "COUNT") if other != match[1]
        ],
    )
    change(r"COUNT\(\*\)", "SUM(age)", "COUNT(DISTINCT city)", "COUNT(DISTINCT age)")
    change(r"COUNT\(DISTINCT city\)", "COUNT(city)", "COUNT(DISTINCT age)")
    change("DISTINCT ", "")
    if "GROUP" not in reference:
        change(
            r"^SELECT (city|department|category|stock|salary|quantity|total) FROM", r"SELECT DISTINCT \1 FROM"
        )
    change(
        rf"\b({'|'.join(COLUMNS[table])})\b",
        lambda match: [other for other in COLUMNS[table] if other != match[0]],
    )
    change(
        r"'(\w+)'",
        lambda match: [
            f"'{other}'" for values in texts if match[1] in values for other in values if other != match[1]
        ],
    )
    change(r"WHERE (\w+ = '\w+') (?:AND|OR) (\w+ [<>] \d+)", r"WHERE \1", r"WHERE \2")
    change(r"(?<=') AND ", " OR ")
    change(r" OR ", " AND ")
    change(r" WHERE .*?(?= GROUP| ORDER|$)", "")
    change(
        r"BETWEEN (\d+) AND (\d+)",
        r"> \1 AND price < \2",
        r">= \1 AND price < \2",
        r"> \1 AND price <= \2",
        r">= \1",
        r"<= \2",
    )
    change(" HAVING .*", "")
    change(r" GROUP BY \w+", "")
    change(" ON c.id = customer_id", "", " ON c.id = product_id", " ON c.id = orders.id")
    change(r"^SELECT (\w+), ([\w(*)]+)", r"SELECT \2, \1", r"SELECT \1", r"SELECT \2")
    return found - {reference}


def detection(count: int, seed: int) -> tuple[float, list[tuple[str, str]], Counter[str]]:
    """(share of mutants that are not judged correct, those that are, fillings where the reference has no row by intent)."""
    missed, total, empty = [], 0, Counter[str]()
    for intent, reference, ordered in references(count, seed):
        assert compare("sql", reference, reference, ordered).correct
        focus = sql._focus("sql", reference)
        without = [
            sql._wanted("sql", reference, ordered, focus, filling).rows in ([], [(None,)])
            for filling in range(sql.FILLINGS)
        ]
        assert not all(without), reference
        empty[intent] += sum(without)
        for mutant in mutants(reference):
            total += 1
            if compare("sql", reference, mutant, ordered).correct:
                missed.append((reference, mutant))
    assert total > 20 * count
    return 1 - len(missed) / total, missed, empty


def test_one_changed_thing_is_noticed() -> None:
    share, missed, empty = detection(48, 0)
    assert share >= 0.99, missed
    assert {intent for intent, count in empty.items() if count} <= {
        "group-having-count",
        "group-having-average",
        "city-and-younger",
    }


@pytest.mark.slow
def test_one_changed_thing_is_noticed_over_300_tasks() -> None:
    share, missed, _ = detection(312, 1)
    assert share >= 0.998, missed


@pytest.mark.slow
def test_no_held_out_query_passes_for_another() -> None:
    queries = list(dict.fromkeys((reference, ordered) for _, reference, ordered in references(144, 2)))
    same = [
        (a, b)
        for a, ordered in queries
        for b, _ in queries
        if a != b and compare("sql", a, b, ordered).status != "wrong"
    ]
    assert same == []


def test_fillings_are_the_same_in_every_process_and_differ_from_each_other() -> None:
    focus = sql._focus("sql", REFERENCE)
    own = tuple(part for part in focus if part[0] == "employees")
    assert own == (("employees", "city", ("Rome",)), ("employees", "age", (30,)))
    tables = [sql._table("sql", "employees", own, filling) for filling in range(sql.FILLINGS)]
    assert len(set(tables)) == sql.FILLINGS >= 3
    code = f"from envs.verify import sql; import hashlib; print(hashlib.md5(sql._table('sql', 'employees', {own!r}, 5).encode()).hexdigest())"
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(hashes) == 1 and len(hashes.pop()) == 33


def test_fillings_have_the_rows_that_the_file_asks_for() -> None:
    about = load_spec("sql").verify
    assert isinstance(about, ByQuery)
    assert {name: table.rows for name, table in about.tables.items()} == {
        "employees": 80,
        "customers": 30,
        "products": 60,
        "orders": 150,
    }
    for name, table in about.tables.items():
        ids = f"SELECT COUNT(*), COUNT(DISTINCT id), MIN(id), MAX(id) FROM {name}"
        assert compare("sql", ids, f"SELECT {table.rows}, {table.rows}, 1, {table.rows}", False).correct
    none = "SELECT 1 WHERE 0"
    for query in [
        "SELECT 1 FROM orders WHERE customer_id NOT IN (SELECT id FROM customers) OR product_id NOT IN (SELECT id FROM products)",
        "SELECT price FROM products GROUP BY price HAVING COUNT(*) > 1",
        "SELECT name FROM employees GROUP BY name HAVING COUNT(*) > 1",
        "SELECT id FROM products WHERE price NOT BETWEEN 5 AND 400",
    ]:
        assert compare("sql", query, none, False).correct, query
    assert not compare(
        "sql", "SELECT id FROM customers WHERE id NOT IN (SELECT customer_id FROM orders)", none, False
    ).correct


OWN = """\
name: own
description: one table of another kind
tools: [sqlite]
verify:
  kind: sql
  tables:
    Visits:
      rows: 6
      columns:
        visit_no: {fill: key}
        who: {fill: unique, words: [Ann, Bob, Cid]}
        level: {fill: among, slot: level}
        grade: {fill: among, values: [3, 7]}
        degrees: {fill: integer, low: -3, high: 2, repeats: never}
        after: {fill: refers, to: Visits}
prompts:
  {forward: "{task}", inverse: "{command}", propose: p, judge: "{task} {command}", rate: "{task} {reconstruction}",
   revise: "{task} {command}"}
principles: [none]
slots:
  level: {kind: choice, values: {first: 1, second: two}}
  degrees: {kind: integer, low: -9, high: 9}
intents:
  - name: colder
    tool: sqlite
    command: "SELECT who FROM Visits WHERE degrees < {degrees}"
    paraphrases: ["{degrees} a", "{degrees} b", "{degrees} c"]
"""


def test_a_domain_of_ones_own(tmp_path: Path) -> None:
    where = str(tmp_path / "own.yaml")
    Path(where).write_text(OWN, encoding="utf-8")
    for reference, command, status in [
        (
            "SELECT who FROM Visits WHERE degrees < -1",
            "select WHO from visits where DEGREES <= -2",
            "correct",
        ),
        ("SELECT who FROM Visits WHERE degrees < -1", "SELECT who FROM Visits WHERE degrees <= -1", "wrong"),
        ("SELECT degrees FROM Visits", "VALUES (-3), (-2), (-1), (0), (1), (2)", "correct"),
        ("SELECT COUNT(*) FROM Visits WHERE level = 1 OR level = 'two'", "SELECT 6", "correct"),
        ("SELECT who FROM Visits WHERE grade = 7", "SELECT who FROM Visits WHERE grade > 3", "correct"),
        ("SELECT who FROM Visits WHERE who = 'Ann Bob'", "SELECT 'Ann Bob'", "correct"),
        ("SELECT COUNT(*) FROM Visits a JOIN Visits b ON a.after = b.visit_no", "SELECT 6", "correct"),
        ("SELECT who FROM Visits", "SELECT name FROM employees", "invalid"),
    ]:
        assert compare(where, reference, command, False).status == status, (reference, command)


# --- hostile statements

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
    "SELECT SUM(a.age) OVER (ORDER BY a.age, b.age, c.age ROWS 100000 PRECEDING) FROM employees a, employees b, employees c",
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
    tmp_path: Path,
) -> None:
    """Bounds are loose, for busy machines. What is denied is denied at once; what may run ends with its second."""
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
            assert slowest < 5, statement[:100]
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
def worker() -> Iterator[sql._Worker]:
    assert compare("sql", REFERENCE, REFERENCE, False).correct
    return sql._workers.idle[-1]


def test_a_worker_has_nothing_but_its_pipes(worker: sql._Worker) -> None:
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


def test_a_worker_that_hangs_is_killed_and_replaced(worker: sql._Worker) -> None:
    os.kill(worker.process.pid, signal.SIGSTOP)  # as if it were in a function that SQLite cannot interrupt
    start = time.perf_counter()
    verdict = compare("sql", REFERENCE, REFERENCE, False)
    assert (verdict.status, verdict.reason) == ("wrong", f"ran longer than {sql.SECONDS:g} s")
    assert 1.2 < time.perf_counter() - start < 4
    assert worker.process.poll() == -signal.SIGKILL
    assert compare("sql", REFERENCE, REFERENCE, False).correct


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_died_while_idle_is_replaced(worker: sql._Worker, number: int) -> None:
    worker.process.send_signal(number)
    worker.process.wait()
    assert compare("sql", REFERENCE, REFERENCE, False).correct


def test_a_worker_ends_itself_where_nobody_kills_it() -> None:
    """Its own timer, for a parent that is too busy."""
    worker = sql._Worker()
    focus = sql._focus("sql", REFERENCE)
    sql._load(worker, "x", "sql", focus, 0, False)
    with pytest.raises(
        EOFError
    ):  # with hardly any time it ends, now or a little later, though nobody reads a clock for it
        [
            worker.ask({"query": REFERENCE, "of": "x", "seconds": 1e-5 - sql_worker.GRACE}, 5)
            for _ in range(1000)
        ]
    assert worker.end() == -signal.SIGALRM


def test_many_threads() -> None:
    queries = [REFERENCE, f"{ENDLESS} SELECT COUNT(*) FROM c", "SELECT 1", "nonsense", REFERENCE + " AND 1"]
    with ThreadPoolExecutor(6) as pool:
        statuses = list(
            pool.map(lambda number: compare("sql", REFERENCE, queries[number % 5], False).status, range(30))
        )
    assert statuses == ["correct", "wrong", "wrong", "invalid", "correct"] * 6
    assert compare("sql", REFERENCE, REFERENCE, False).correct  # though the threads that asked first are gone
    assert len(workers_of(os.getpid())) <= sql.KEPT_WORKERS


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
    """Some 2 ms once the reference is known; the bound is loose, for busy machines."""
    times = []
    for _ in range(20):
        start = time.perf_counter()
        assert compare("sql", REFERENCE, REFERENCE + " ORDER BY name", False).correct
        times.append(time.perf_counter() - start)
    assert sorted(times)[10] < 0.03


def test_mistakes_in_the_tables_are_reported_by_the_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(OWN.replace("to: Visits", "to: Visit"), encoding="utf-8")
    with pytest.raises(
        InputError,
        match=r"own.yaml:15: verify.tables.Visits.columns.after.to: 'Visit' is not in tables: did you mean Visits",
    ):
        load_spec(str(path))
