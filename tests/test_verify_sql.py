"""Queries: what counts as the same."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from envs.schema import load_spec
from envs.verify import sql_pool
from envs.verify.sql import compare

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
        monkeypatch.setattr(sql_pool, "_workers", sql_pool._Workers())
        monkeypatch.setattr(sys, "executable", nothing)
        verdict = compare("sql", "SELECT 7 FROM employees", "SELECT 7 FROM employees", False)
        assert verdict.status == "not_executed" and "cannot be started" in verdict.reason
