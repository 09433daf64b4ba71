"""What a task of a file may bring along: the files that its commands run on, or the database of its queries.

In a line of the file:

    "tree": {"notes.txt": "one\\ntwo\\n", "docs/": ""}        paths and contents; `/` ends a directory
    "tree": {"run.sh": {"kind": "file", "mode": "0o755", "content": "BASE64"}}
    "tree": "trees.json#NAME"                               such an object of a JSON file, by its name there
    "database": "CREATE TABLE a (b INTEGER); INSERT INTO a VALUES (1);"
    "database": "shop.sql"                                  a file with such statements

Files are looked for beside the file that names them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from envs.files import BOM, open_file
from envs.jsonl import from_json
from envs.messages import did_you_mean, one_line, short
from envs.streams import stream
from envs.types import InputError
from envs.verify.sandbox.archive import Entry, Tree
from envs.verify.trees import LONGEST_NAME

MOST_BYTES = 4 * 2**20  # of the contents of a tree, and of the statements of a database
MOST_BYTES_OF_A_FILE = 64 * 2**20  # that holds trees
MOST_CELLS = 100_000  # of all tables of a database
LONGEST_TEXT = 10_000  # bytes of a value in a database
HIDDEN = 1  # of a column in table_xinfo: SELECT * leaves it out
SECONDS = 5.0  # that making a database may take
PARTS = 4  # databases that a query and its reference are compared on: all rows, and halves of them
WITH_TARGET = "write an object of paths and contents, or FILE.json#NAME"
STATEMENTS = "give CREATE TABLE and INSERT statements of SQLite, or the name of a .sql file beside this one"
COLUMN_TYPE = re.compile(r"[A-Za-z_ ]*(?:\(\d+(?:, ?\d+)?\))?")
ALLOWED = {
    sqlite3.SQLITE_CREATE_TABLE,
    sqlite3.SQLITE_CREATE_INDEX,
    sqlite3.SQLITE_DROP_TABLE,
    sqlite3.SQLITE_INSERT,
    sqlite3.SQLITE_UPDATE,
    sqlite3.SQLITE_DELETE,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_REINDEX,
    sqlite3.SQLITE_TRANSACTION,
}


@dataclass(frozen=True, eq=False)
class GivenTree:
    """A file tree of one's own."""

    tree: Tree


@dataclass(frozen=True, eq=False)
class GivenDatabase:
    """A database of one's own.

    Attributes:
        name: different for different tables.
        tables: name -> types of columns, and rows.
    """

    name: str
    tables: Mapping[str, Any]

    def schema(self) -> str:
        """The tables as a model is told of them."""
        lines = ["The SQLite database has these tables:"]
        for name, table in self.tables.items():
            columns = [f"{column} {kind}".strip() for column, kind in table["columns"].items()]
            lines.append(f"{name}({', '.join(columns)})")
        return "\n".join(lines)


class Part(NamedTuple):
    """A database of one's own, or half of its rows; see `envs.verify.fillings.Filling`.

    Attributes:
        number: 0 for all rows; for others each row is there with a chance of one half.
        backwards: whether the rows of each table are put in in reverse.
    """

    database: GivenDatabase
    number: int
    backwards: bool = False

    def name(self) -> str:
        """Different for every part."""
        return json.dumps([self.database.name, self.number, self.backwards])

    def tables(self) -> dict[str, Any]:
        """Name -> types of columns, and rows."""
        tables = {}
        for name, table in self.database.tables.items():
            rows = list(table["rows"])
            if self.number > 0:
                rng = stream("part", self.number, name)
                rows = [row for row in rows if rng.random() < 0.5]
            if self.backwards:
                rows.reverse()
            tables[name] = {"columns": table["columns"], "rows": rows}
        return tables


class Giver:
    """Makes what the lines of a file bring along; the same thing twice is made once.

    Args:
        folder: where files are looked for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[str, GivenTree | GivenDatabase] = {}
        self.files: dict[str, Mapping[str, Any]] = {}

    def tree(self, value: object) -> GivenTree:
        """The tree of a line.

        Raises:
            ValueError: what is wrong with it, and the fix.
        """
        if isinstance(value, str):
            value = self._named(value)
        if not isinstance(value, dict) or not value:
            raise ValueError(f"must hold files: {WITH_TARGET}")
        key = "tree " + json.dumps(value, sort_keys=True)
        if key not in self.made:
            self.made[key] = GivenTree(tree_of(value))
        made = self.made[key]
        assert isinstance(made, GivenTree)
        return made

    def database(self, value: object) -> GivenDatabase:
        """The database of a line.

        Raises:
            ValueError: what is wrong with it, and the fix.
        """
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"must be a text that is not empty: {STATEMENTS}")
        key = "database " + value
        if key not in self.made:
            is_file = value.strip().endswith(".sql") and "\n" not in value
            script = self._text(value.strip(), MOST_BYTES) if is_file else value
            self.made[key] = database_of(script)
        made = self.made[key]
        assert isinstance(made, GivenDatabase)
        return made

    def _named(self, value: str) -> object:
        """A tree by its name in a JSON file."""
        file, _, name = value.partition("#")
        if not name:
            raise ValueError(f"{short(value)} names no tree of a file: {WITH_TARGET}")
        if file not in self.files:
            text = self._text(file, MOST_BYTES_OF_A_FILE)
            try:
                found = from_json(text)
            except ValueError:
                raise ValueError(f"{file} is not JSON: write an object of names and trees in it") from None
            if not isinstance(found, dict):
                raise ValueError(f"{file} is no object: write names and trees in it")
            self.files[file] = found
        if name not in self.files[file]:
            raise ValueError(f"{file} has no tree {name!r}: {did_you_mean(name, self.files[file])}")
        return self.files[file][name]

    def _text(self, name: str, most_bytes: int) -> str:
        path = self.folder / name
        try:
            with open_file(path, str(path), most_bytes) as file:
                return file.read().removeprefix(BOM).decode("utf-8")
        except FileNotFoundError:
            raise ValueError(f"no such file {path}: put it beside the file that names it") from None
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8: save it as UTF-8") from None
        except InputError as error:
            raise ValueError(str(error)) from None


# Trees


def tree_of(files: Mapping[str, Any]) -> Tree:
    """A tree from paths and contents; directories above them are made.

    Raises:
        ValueError: what is wrong with it, and the fix.
    """
    tree: dict[str, Entry] = {}
    for written, value in files.items():
        path = written.rstrip("/")
        parts = path.split("/")
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise ValueError(f"{short(written)} is no path inside the tree: write one like docs/a.txt")
        if any(len(part.encode()) > LONGEST_NAME for part in parts):
            raise ValueError(f"{short(written)} is too long for a name: write a shorter one")
        entry = _entry(written, value)
        for end in range(1, len(parts)):
            above = tree.setdefault("/".join(parts[:end]), Entry("directory", 0o755))
            if above.kind != "directory":
                raise ValueError(f"{short(written)} lies in what is no directory: rename one of them")
        if path in tree and tree[path].kind != entry.kind:
            raise ValueError(f"{short(written)} is there as a {tree[path].kind} as well: rename one of them")
        tree[path] = entry
    if sum(len(entry.content) for entry in tree.values()) > MOST_BYTES:
        raise ValueError(f"holds too much ({MOST_BYTES // 2**20} MiB are allowed): leave files out")
    return tree


def _entry(path: str, value: object) -> Entry:
    if isinstance(value, str):
        if not path.endswith("/"):
            return Entry("file", 0o644, value.encode())
        if not value:
            return Entry("directory", 0o755)
        raise ValueError(f'{short(path)} is a directory and has a content: write "" for it')
    if not isinstance(value, dict):
        raise ValueError(f"{short(path)} must have a text or an object: write its content")
    known = ("kind", "mode", "content")
    for key in value:
        if key not in known:
            raise ValueError(f"{short(path)} has an unknown key {key!r}: {did_you_mean(key, known)}")
    kind = value.get("kind", "file")
    if kind not in ("file", "directory", "link"):
        raise ValueError(f"{short(path)} is of kind {short(kind)}: use file, directory or link")
    mode = value.get("mode", "0o755" if kind == "directory" else "0o644")
    if kind == "directory" and value.get("content"):
        raise ValueError(f"{short(path)} is a directory and has a content: leave it out")
    if not isinstance(mode, str) or not re.fullmatch("(0o)?[0-7]{3,4}", mode):
        raise ValueError(f'{short(path)} has the mode {short(mode)}: write octal digits such as "0o644"')
    try:
        content = base64.b64decode(value.get("content", ""), validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise ValueError(
            f"{short(path)} has a content that is not base64: write base64, or the text instead of the object"
        ) from None
    return Entry(kind, int(mode, 8), content)


# Databases


def database_of(script: str) -> GivenDatabase:
    """The tables that some statements of SQLite make, with their rows. No other statement is allowed.

    Raises:
        ValueError: what is wrong with them, and the fix.
    """
    if len(script.encode()) > MOST_BYTES:
        raise ValueError(f"holds too much ({MOST_BYTES // 2**20} MiB are allowed): leave rows out")
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        end = time.monotonic() + SECONDS
        connection.set_authorizer(_only_tables)
        connection.set_progress_handler(lambda: time.monotonic() > end, 10_000)
        try:
            connection.executescript(script)
        except (sqlite3.Error, ValueError) as error:
            said = " ".join(str(error).split())
            raise ValueError(f"SQLite does not take its statements ({said}): {STATEMENTS}") from None
        connection.set_authorizer(None)
        found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY rowid")
        tables = {}
        for (name,) in found.fetchall():
            if not name.startswith("sqlite_"):
                tables[name] = _table(connection, name)
    cells = sum(len(table["rows"]) * len(table["columns"]) for table in tables.values())
    if not cells:
        raise ValueError(f"has no row: {STATEMENTS}")
    if cells > MOST_CELLS:
        raise ValueError(f"has {cells:,} values ({MOST_CELLS:,} are allowed): leave rows out")
    written = json.dumps(tables)
    return GivenDatabase(hashlib.sha256(written.encode()).hexdigest(), tables)


def _only_tables(action: int, first: str | None, *_: object) -> int:
    """An authorizer of SQLite: statements may make tables and fill them, and touch nothing else."""
    is_usual = action == sqlite3.SQLITE_PRAGMA and first == "foreign_keys"  # dumps begin with it
    return sqlite3.SQLITE_OK if action in ALLOWED or is_usual else sqlite3.SQLITE_DENY


def _table(connection: sqlite3.Connection, name: str) -> dict[str, Any]:
    """Types of columns, and rows, as `sql_worker` takes them: without keys, indexes and constraints."""
    columns = {}
    for _, column, kind, *_, hidden in connection.execute(f"PRAGMA table_xinfo({_quoted(name)})"):
        if hidden != HIDDEN:
            columns[column] = kind if COLUMN_TYPE.fullmatch(kind) else ""
    if '"' in "".join([name, *columns]):
        raise ValueError(f"table {name!r} has a quotation mark in a name: rename it")
    rows = []
    try:
        stored = connection.execute(f"SELECT * FROM {_quoted(name)}").fetchall()
    except sqlite3.OperationalError as error:
        raise ValueError(
            f"table {name!r} cannot be read ({one_line(error)}): write it again in UTF-8"
        ) from None
    for row in stored:
        for value in row:
            if isinstance(value, bytes):
                raise ValueError(f"table {name!r} holds a blob: only numbers, texts and NULL are supported")
            if isinstance(value, str) and len(value.encode()) > LONGEST_TEXT:
                raise ValueError(f"table {name!r} holds a text of over {LONGEST_TEXT:,} bytes: shorten it")
        rows.append(list(row))
    return {"columns": columns, "rows": rows}


def _quoted(name: str) -> str:
    doubled = name.replace('"', '""')
    return f'"{doubled}"'
