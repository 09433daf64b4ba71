"""Tasks of a file that bring their own file tree or database along."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from envs.prompts import forward_prompt, inverse_prompt
from envs.types import InputError
from envs.verify.given import GivenDatabase, GivenTree, Giver, Part, database_of, tree_of
from envs.verify.sandbox.archive import Entry
from envs.verify.truth import Case, read_cases, verify

SHOP = """
PRAGMA foreign_keys=OFF;
CREATE TABLE "shop item" (id INTEGER PRIMARY KEY, name TEXT, price REAL);
CREATE INDEX by_price ON "shop item" (price);
INSERT INTO "shop item" VALUES (1, 'pen', 1.5), (2, 'ink', 4), (3, 'mug', 4), (4, 'ball', 9), (5, NULL, 2);
CREATE TABLE sale (item INTEGER REFERENCES "shop item" (id), day TEXT);
INSERT INTO sale VALUES (1, 'mon'), (1, 'tue'), (2, 'mon'), (4, 'wed'), (3, 'wed'), (1, 'thu'), (4, 'fri');
"""


def write(folder: Path, *rows: Mapping[str, Any]) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def statuses(cases: list[Case], commands: list[str]) -> list[str]:
    verdicts = verify([case.task for case in cases], commands, cases)
    return [verdict.status for verdict in verdicts]


# ---- trees ----


def test_paths_become_a_tree_with_the_directories_above_them() -> None:
    content = base64.b64encode(b"#!/bin/sh\n\xff").decode()
    tree = tree_of(
        {
            "a/b/c.txt": "one\n",
            "a/empty/": "",
            "run.sh": {"mode": "0o755", "content": content},
            "link": {"kind": "link", "content": base64.b64encode(b"run.sh").decode(), "mode": "777"},
            "a": {"kind": "directory", "mode": "700"},
        }
    )
    assert tree == {
        "a": Entry("directory", 0o700),
        "a/b": Entry("directory", 0o755),
        "a/b/c.txt": Entry("file", 0o644, b"one\n"),
        "a/empty": Entry("directory", 0o755),
        "run.sh": Entry("file", 0o755, b"#!/bin/sh\n\xff"),
        "link": Entry("link", 0o777, b"run.sh"),
    }


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (3, "must hold files: write an object of paths and contents"),
        ({}, "must hold files"),
        ("shop", "'shop' names no tree of a file: write an object of paths and contents, or FILE.json#NAME"),
        ("no.json#shop", "no such file "),
        ("trees.json#shp", "trees.json has no tree 'shp': did you mean shop?"),
        ("bad.json#shop", "bad.json is not JSON"),
        ("list.json#shop", "list.json is no object"),
        ({"/etc/passwd": ""}, "'/etc/passwd' is no path inside the tree"),
        ({"a/../b": ""}, "'a/../b' is no path inside the tree"),
        ({"": "x"}, "'' is no path inside the tree"),
        ({"a\0": "x"}, "'a\\x00' is no path inside the tree"),
        ({"a" * 256: ""}, "is too long for a name"),
        ({"docs/": "text"}, "'docs/' is a directory and has a content"),
        ({"a": "file", "a/b": "file"}, "'a/b' lies in what is no directory"),
        ({"a/b": "file", "a": "file"}, "'a' is there as a directory as well"),
        ({"a": 3}, "'a' must have a text or an object"),
        ({"a": {"kin": "file"}}, "'a' has an unknown key 'kin': did you mean kind?"),
        ({"a": {"kind": "pipe"}}, "'a' is of kind 'pipe': use file, directory or link"),
        ({"a": {"mode": 644}}, "'a' has the mode 644: write octal digits"),
        ({"a": {"mode": "0o999"}}, "'a' has the mode '0o999': write octal digits"),
        ({"a": {"content": "not base64"}}, "'a' has a content that is not base64"),
        ({"a": {"content": 3}}, "'a' has a content that is not base64"),
        ({"a": "x" * (4 * 2**20 + 1)}, "holds too much (4 MiB are allowed)"),
    ],
)
def test_a_faulty_tree_is_named(tmp_path: Path, tree: object, message: str) -> None:
    (tmp_path / "trees.json").write_text('{"shop": {"a": "x"}}')
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    path = write(tmp_path, {"task": "a", "reference": "ls"}, {"task": "a", "reference": "ls", "tree": tree})
    with pytest.raises(InputError) as error:
        read_cases(path, "shell")
    assert str(error.value).startswith(f"{path}:2: tree: ") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_command_runs_on_the_tree_of_its_task(tmp_path: Path) -> None:
    files = {"list.txt": "b\na\nb\n", "docs/one.md": "x\n"}
    (tmp_path / "trees.json").write_text(json.dumps({"shop": files}))
    row = {"task": "sort list.txt, each line once", "reference": "sort -u list.txt", "ordered": True}
    path = write(
        tmp_path,
        {**row, "tree": files},
        {**row, "tree": {"list.txt": "a\nb\n"}},
        {**row, "tree": "trees.json#shop"},
        row,
        {"task": "read gone.txt", "reference": "cat gone.txt", "tree": files},
        {"task": "find all PDF files", "reference": "find . -name '*.pdf'", "tree": files},
    )
    cases = read_cases(path, "shell")
    assert cases[0].given is cases[2].given and isinstance(cases[0].given, GivenTree)
    assert cases[3].given is None
    right = [case.reference for case in cases]
    assert statuses(cases, right) == ["correct"] * 4 + ["not_executed"] * 2
    # `cat` does the same only where the lines are sorted and different already, as on the second tree.
    assert statuses(cases[:4], ["cat list.txt"] * 4) == ["wrong", "correct", "wrong", "wrong"]
    verdict = verify([cases[5].task], ["ls"], [cases[5]])[0]
    assert verdict.reason == "nothing of the reference shows on its tree: find . -name '*.pdf'"


# ---- databases ----


def test_statements_become_tables_and_the_schema_is_shown() -> None:
    made = database_of(SHOP)
    assert list(made.tables) == ["shop item", "sale"]
    assert made.tables["shop item"]["columns"] == {"id": "INTEGER", "name": "TEXT", "price": "REAL"}
    assert made.tables["shop item"]["rows"][4] == [5, None, 2.0]
    assert made.schema() == (
        "The SQLite database has these tables:\n"
        "shop item(id INTEGER, name TEXT, price REAL)\n"
        "sale(item INTEGER, day TEXT)"
    )
    assert database_of(SHOP).name == made.name != database_of(SHOP.replace("pen", "nib")).name


def test_parts_hold_all_rows_then_some_of_them_and_are_the_same_every_time() -> None:
    made = database_of(
        "CREATE TABLE t (n INTEGER); INSERT INTO t VALUES (1), (2), (3), (4), (5), (6), (7), (8);"
    )
    rows = [Part(made, number).tables()["t"]["rows"] for number in range(4)]
    assert rows[0] == [[n] for n in range(1, 9)]
    assert all(part == sorted(part) and 0 < len(part) < 8 for part in rows[1:])
    assert rows == [Part(made, number).tables()["t"]["rows"] for number in range(4)]
    assert Part(made, 1, backwards=True).tables()["t"]["rows"] == rows[1][::-1]
    assert len({Part(made, number, back).name() for number in range(4) for back in (False, True)}) == 8


@pytest.mark.parametrize(
    ("database", "message"),
    [
        (3, "must be a text that is not empty: give CREATE TABLE and INSERT statements"),
        (" ", "must be a text that is not empty"),
        ("shop", 'SQLite does not take its statements (near "shop": syntax error): give'),
        ("no.sql", "no such file "),
        ("bad.sql", "bad.sql is not UTF-8: save it as UTF-8"),
        ("CREATE TABLE t (a INTEGER);", "has no row"),
        ("ATTACH '/tmp/x.db' AS x;", "SQLite does not take its statements (not authorized)"),
        ("CREATE VIEW v AS SELECT 1;", "SQLite does not take its statements (not authorized)"),
        ("CREATE TABLE t (a); INSERT INTO t VALUES (x'00');", "table 't' holds a blob"),
        ('CREATE TABLE t ("a""b"); INSERT INTO t VALUES (1);', "table 't' has a quotation mark in a name"),
        (f"CREATE TABLE t (a); INSERT INTO t VALUES ('{'x' * 10_001}');", "table 't' holds a text of over"),
    ],
)
def test_a_faulty_database_is_named(tmp_path: Path, database: object, message: str) -> None:
    (tmp_path / "bad.sql").write_bytes(b"\xff")
    path = write(tmp_path, {"task": "a", "reference": "SELECT 1", "database": database})
    with pytest.raises(InputError) as error:
        read_cases(path, "sql")
    assert str(error.value).startswith(f"{path}:1: database: ") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_generated_columns_are_columns_and_a_reference_must_give_rows(tmp_path: Path) -> None:
    made = (
        "CREATE TABLE a (b INTEGER, c INTEGER GENERATED ALWAYS AS (b * 2)); INSERT INTO a (b) VALUES (1), (2)"
    )
    row = {"task": "doubles of more than 2", "database": made}
    path = write(
        tmp_path,
        {**row, "reference": "SELECT c FROM a WHERE c > 2"},
        {**row, "reference": "SELECT c FROM a WHERE c > 99"},
    )
    cases = read_cases(path, "sql")
    assert statuses(cases, ["SELECT b * 2 FROM a WHERE b > 1", "SELECT c FROM a WHERE c > 50"]) == [
        "correct",
        "not_executed",
    ]


def test_a_directory_as_an_object_can_be_entered(tmp_path: Path) -> None:
    tree = {"docs": {"kind": "directory"}, "docs/a.txt": "x\n"}
    path = write(tmp_path, {"task": "show a.txt in docs", "reference": "cat docs/a.txt", "tree": tree})
    assert statuses(read_cases(path, "shell"), ["cat ./docs/a.txt"]) == ["correct"]


def test_statements_that_never_end_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.verify.given.SECONDS", 0.05)
    rows = ", ".join(f"({n})" for n in range(30))
    endless = "INSERT INTO t SELECT a.n FROM t AS a, t AS b, t AS c, t AS d, t AS e, t AS f, t AS g"
    with pytest.raises(ValueError, match="interrupted"):
        database_of(f"CREATE TABLE t (n); INSERT INTO t VALUES {rows}; {endless};")


def test_a_query_runs_on_the_database_of_its_task(tmp_path: Path) -> None:
    (tmp_path / "shop.sql").write_text(SHOP)
    dearest = 'SELECT name FROM "shop item" WHERE price > 3 ORDER BY price'
    row = {"task": "what costs over 3, by price", "reference": dearest, "ordered": True}
    path = write(
        tmp_path,
        {**row, "database": "shop.sql"},
        {**row, "database": SHOP},
        row,
        {"task": "how many employees are there", "reference": "SELECT COUNT(*) FROM employees"},
    )
    cases = read_cases(path, "sql")
    assert isinstance(cases[0].given, GivenDatabase)
    assert statuses(cases, [case.reference for case in cases]) == ["correct"] * 2 + [
        "not_executed",
        "correct",
    ]
    # Ties may come in any order, and the same rows for another reason are found out on half of the rows.
    others = {
        'SELECT name FROM "shop item" WHERE price > 3 ORDER BY price, name': "correct",
        'SELECT name FROM "shop item" WHERE price > 3 ORDER BY price DESC': "wrong",
        'SELECT name FROM "shop item" WHERE price >= 4 ORDER BY price': "correct",
        'SELECT name FROM "shop item" ORDER BY price LIMIT 3 OFFSET 2': "wrong",
        "SELECT name FROM employees": "invalid",
    }
    for command, status in others.items():
        assert statuses([cases[0]], [command]) == [status], command


def test_a_model_is_told_the_schema_of_the_task(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"task": "what is sold", "reference": "SELECT 1", "database": SHOP},
        {"task": "how many employees are there", "reference": "SELECT COUNT(*) FROM employees"},
    )
    own, usual = (case.task for case in read_cases(path, "sql"))
    for prompt in (forward_prompt(own), inverse_prompt(own, "SELECT 1")):
        assert "shop item(" in prompt.system and "employees(" not in prompt.system
    for prompt in (forward_prompt(usual), inverse_prompt(usual, "SELECT 1")):
        assert "employees(" in prompt.system


# ---- which domain takes which ----


def test_a_line_names_its_domain_where_there_are_several(tmp_path: Path) -> None:
    tree = {"a.txt": "x\n"}
    path = write(
        tmp_path,
        {"task": "show a.txt", "reference": "cat a.txt", "domain": "shell", "tree": tree, "source": " a b "},
        {"task": "ping db.test", "reference": "ping db.test", "domain": "network"},
    )
    first, second = read_cases(path, "all")
    assert (first.task.domain, first.source, second.task.domain, second.source) == (
        "shell",
        "a b",
        "network",
        "",
    )
    path = write(tmp_path, {"task": "ping db.test", "reference": "ping db.test"})
    with pytest.raises(InputError, match=r":1: domain: is missing: add \"domain\": \"network\" or another"):
        read_cases(path, "all")


@pytest.mark.parametrize(("domain", "key"), [("sql", "tree"), ("network", "tree"), ("shell", "database")])
def test_a_domain_without_use_for_it_refuses_it(tmp_path: Path, domain: str, key: str) -> None:
    path = write(tmp_path, {"task": "a", "reference": "b", "domain": domain, key: {"a": "x"}})
    with pytest.raises(InputError) as error:
        read_cases(path, "all")
    assert str(error.value).startswith(f"{path}:1: {key}: is for domains with verify: ")
    assert str(error.value).endswith("leave it out")


def test_the_same_thing_is_made_once(tmp_path: Path) -> None:
    giver = Giver(tmp_path)
    assert giver.tree({"a": "x", "b": "y"}) is giver.tree({"b": "y", "a": "x"})
    assert giver.tree({"a": "x"}) is not giver.tree({"a": "y"})
    assert giver.database(SHOP) is giver.database(SHOP)
