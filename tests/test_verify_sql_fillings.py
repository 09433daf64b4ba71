"""Queries: the fillings tell look-alikes apart."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from envs.domain import load_domain
from envs.grammar import ByQuery, Choice
from envs.schema import load_spec
from envs.types import InputError
from envs.verify.fillings import FILLINGS, focus_of, table_as_json
from envs.verify.sql import compare, fillings_of, wanted_result
from envs.verify.truth import command_of, find_draw

REFERENCE = "SELECT name FROM employees WHERE city = 'Rome' AND age > 30"


def references(count: int, seed: int) -> list[tuple[str, str, bool]]:
    """(intent, reference, whether order matters) of held-out tasks, intents in turn."""
    ordered = {intent.name: intent.order == "matters" for intent in load_spec("sql").intents}
    draws = [find_draw(task) for task in load_domain("sql").tasks("heldout", count, seed)]
    return [
        (draw.intent, command_of("sql", draw.intent, draw.values), ordered[draw.intent])
        for draw in draws
        if draw
    ]


COLUMNS = {
    "employees": ["name", "city", "department", "salary", "age"],
    "products": ["name", "category", "price", "stock"],
    "orders": ["quantity", "total", "customer_id", "product_id"],
}


def mutants(reference: str) -> set[str]:
    """The query with one thing changed, to ask for something else."""
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
    """Share of mutants not judged correct, those that are, and how many fillings have no row, by intent."""
    missed, total, empty = [], 0, Counter[str]()
    for intent, reference, ordered in references(count, seed):
        assert compare("sql", reference, reference, ordered).correct
        without = [
            wanted_result(filling, reference, ordered).rows in ([], [(None,)])
            for filling in fillings_of("sql", reference)
        ]
        assert not all(without), reference
        empty[intent] += sum(without)
        for mutant in mutants(reference):
            total += 1
            if compare("sql", reference, mutant, ordered).correct:
                missed.append((reference, mutant))
    assert total > 20 * count
    return 1 - len(missed) / total, missed, empty


@pytest.mark.slow
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
    focus = focus_of("sql", REFERENCE)
    own = tuple(part for part in focus if part.table == "employees")
    assert own == (("employees", "city", ("Rome",)), ("employees", "age", (30,)))
    tables = [table_as_json("sql", "employees", own, filling) for filling in range(FILLINGS)]
    assert len(set(tables)) == FILLINGS >= 3
    code = (
        "import hashlib; from envs.verify.fillings import FocusedColumn, table_as_json; "
        f"print(hashlib.md5(table_as_json('sql', 'employees', {own!r}, 5).encode()).hexdigest())"
    )
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
        "SELECT 1 FROM orders WHERE customer_id NOT IN (SELECT id FROM customers)"
        " OR product_id NOT IN (SELECT id FROM products)",
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
  {forward: "{task}", inverse: "{command}", propose: p, judge: "{task} {command}",
   rate: "{task} {reconstruction}", revise: "{task} {command}"}
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


def test_mistakes_in_the_tables_are_reported_by_the_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(OWN.replace("to: Visits", "to: Visit"), encoding="utf-8")
    with pytest.raises(
        InputError,
        match=r"own.yaml:15: verify.tables.Visits.columns.after.to: "
        r"'Visit' is not in tables: did you mean Visits",
    ):
        load_spec(str(path))
