"""What commands do, for a vote without labels: equal effects are equal texts, and no reference comes in."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from agents.cli.command import run_command
from agents.rejection_sft import Config, main
from envs.schema import EMBEDDED
from envs.types import InputError
from envs.verify import shell, sql, sql_pool
from envs.verify.effects import effects_of
from envs.verify.trees import names_of, names_of_all

TESTS = Path(__file__).parent
DOMAINS = TESTS.parent / "configs" / "domains"
ORDERING = ("order by", "| sort", "tac ")  # a vote takes an order that is asked for as a part of the effect
COUNTING = ["wc -l < notes.txt", "cat notes.txt | wc -l", "wc -l < note.txt", "rm notes.txt"]
DISTINCT_AND_GROUP = ["SELECT DISTINCT city FROM employees", "SELECT city FROM employees GROUP BY city"]


def rows(domain: str) -> list[Any]:
    """The groups of a domain's table; of those that are executed every fifth is not slow."""
    table = yaml.safe_load((TESTS / "equivalence" / f"{domain}.yaml").read_text())
    found = []
    for number, row in enumerate(table):
        slow = [pytest.mark.slow] if domain == "shell" and number % 5 else []
        found.append(pytest.param(domain, row, id=f"{domain}: {row['reference']}"[:100], marks=slow))
    return found


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize(("domain", "row"), [*itertools.chain(*map(rows, EMBEDDED))])
def test_a_group_falls_apart_by_what_its_commands_do(domain: str, row: dict[str, Any]) -> None:
    same = [command for command in row.get("same", []) if not asks_for_order(command)]
    other, invalid = row.get("other", []), row.get("invalid", [])
    found = effects_of(domain, [row["reference"], *same, *other, *invalid])
    assert found is not None
    effects = dict(zip([row["reference"], *same, *other, *invalid], found, strict=True))
    first = effects[row["reference"]]
    assert first
    assert {command: effects[command] for command in same} == dict.fromkeys(same, first)
    assert not [command for command in other if effects[command] == first]
    assert {command: effects[command] for command in invalid} == dict.fromkeys(invalid, "")


def asks_for_order(command: str) -> bool:
    return any(sign in command.lower() for sign in ORDERING)


@pytest.mark.usefixtures("sandbox")
def test_output_status_and_files_count_and_what_fails_or_shows_nothing_is_no_vote() -> None:
    found = effects_of("shell", [*COUNTING, "rm -f ./notes.txt", "grep -c nothing-like-it notes.txt"])
    assert found is not None
    count, count_again, other_file, gone, gone_again, zero = found
    assert count == count_again and gone == gone_again
    assert len({count, other_file, gone, zero}) == 4 and all(found)  # grep ends with 1, and prints 0
    nothing = [
        "true",
        "cat /nope | wc -l",
        "cat /nope 2>/dev/null | wc -l",
        "no-such-tool",
        "wc -q notes.txt",
        "(",
    ]
    assert effects_of("shell", nothing) == [""] * len(nothing)


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize(("domain", "commands"), [("shell", COUNTING), ("sql", DISTINCT_AND_GROUP)])
def test_the_order_of_the_candidates_does_not_matter(domain: str, commands: list[str]) -> None:
    first = effects_of(domain, commands)
    assert first is not None
    assert len(set(first)) == {"shell": 3, "sql": 1}[domain]
    mixed = [*commands, *commands]
    random.Random(0).shuffle(mixed)
    shell.effect.cache_clear()
    sql.effect.cache_clear()
    assert effects_of(domain, mixed) == [first[commands.index(command)] for command in mixed]


def test_what_one_command_reads_is_there_for_all() -> None:
    found = names_of_all(["cp a.txt b.txt", "cat b.txt", "find src -name '*.py'", "grep port a.txt"])
    assert found.files == ("b.txt", "a.txt") and found.made == ()  # b.txt is read as well
    assert found.directories == ("src",) and found.suffixes == ("py",) and found.words == ("port",)
    assert names_of_all(["sort a.txt"]) == replace(names_of("sort a.txt"), uneven=True)
    many = names_of_all([f"grep word{letter} a.txt" for letter in "abcdefgg"])
    assert len(many.words) == 6


@pytest.mark.usefixtures("sandbox")
def test_to_count_in_the_wrong_place_is_another_effect() -> None:
    folders = effects_of("shell", ["find docs -name '*.txt' | wc -l", "find doc -name '*.txt' | wc -l"])
    files = effects_of("shell", ["wc -l < a.txt", "wc -l < b.txt", "wc -l < c.txt"])
    assert folders is not None and files is not None
    assert len(set(folders)) == 2 and len(set(files)) == 3


def test_rows_count_in_their_order_where_the_query_asks_for_one() -> None:
    queries = [
        "SELECT name FROM employees WHERE age > 30",
        "SELECT e.name FROM employees e WHERE NOT e.age <= 30",
        "SELECT name FROM employees WHERE age > 30 ORDER BY name",
        "SELECT name FROM employees WHERE age > 30 ORDER BY name DESC",
        "SELECT MAX(age) FROM employees",
        "SELECT age FROM employees ORDER BY age DESC LIMIT 1",  # one row has no order
        "SELECT name FROM employees WHERE age > 3000",  # never a row
        "DROP TABLE employees",
    ]
    found = effects_of("sql", queries)
    assert found is not None
    assert found[0] == found[1] and found[4] == found[5] and found[6:] == ["", ""]
    assert len(set(found)) == 5


def test_a_network_command_is_not_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
    found = effects_of("network", ["ping -c 5 db.test", "ping -c5 db.test;", "ping -c 50 db.test", "ping -Z"])
    assert found is not None
    assert found[0] == found[1] != found[2] and found[3] == ""


def test_where_commands_cannot_be_executed_there_is_no_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise InputError("the SQLite worker cannot be started")

    shell.effect.cache_clear()
    sql.effect.cache_clear()
    monkeypatch.setattr(shell, "unavailable", lambda: "bubblewrap is not installed")
    monkeypatch.setattr(sql_pool, "ask", broken)
    assert effects_of("shell", COUNTING) is None
    assert effects_of("sql", DISTINCT_AND_GROUP) is None


def test_a_run_whose_commands_cannot_be_executed_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blend = tmp_path / "blend.yaml"
    blend.write_text("weights: {likelihood: 1, majority-effect: 1}")
    shell.effect.cache_clear()
    monkeypatch.setattr(shell, "unavailable", lambda: "bubblewrap is not installed")
    monkeypatch.setattr("agents.training.session.load_policy", None)
    for reward in ("majority-effect", str(blend)):
        flags = ["--reward", reward, "--output", str(tmp_path / "runs")]
        assert run_command(Config, main, flags, "rejection_sft") == 2
        assert capsys.readouterr().err == (
            f"error: --reward {reward}: commands of the domain shell cannot be executed here: "
            "see python -m agents.selftest, or use --reward majority\n"
        )
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize(("domain", "commands"), [("shell", COUNTING), ("sql", DISTINCT_AND_GROUP)])
def test_references_do_not_matter(domain: str, commands: list[str], tmp_path: Path) -> None:
    """In a domain whose references are all wrong the commands do what they do in the domain itself."""
    content = yaml.safe_load((DOMAINS / f"{domain}.yaml").read_text())
    for intent in content["intents"]:
        intent["command"] = f"wrong {intent['command']}"
    path = tmp_path / f"{domain}.yaml"
    path.write_text(yaml.safe_dump(content))
    found, in_the_domain = effects_of(str(path), commands), effects_of(domain, commands)
    assert found is not None and in_the_domain is not None
    assert groups(found) == groups(in_the_domain)
    if domain == "shell":  # a filling of SQL derives from the name of its domain as well
        assert found == in_the_domain


def groups(effects: list[str]) -> list[int]:
    return [effects.index(effect) for effect in effects]
