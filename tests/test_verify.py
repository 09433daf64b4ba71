"""Verification from outside: references of tasks, equal pairs verified once, files of own tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from references import exact_match, reference

from envs.domain import load_domain
from envs.schema import CONFIGS, EMBEDDED
from envs.types import InputError, Task
from envs.verify import shell
from envs.verify.sandbox.errors import SandboxError
from envs.verify.truth import (
    Case,
    _verdict,
    find_case,
    how_verified,
    read_cases,
    reconstruction_match,
    verify,
)
from envs.verify.verdict import Verdict

FOREIGN = Task("proposed/0/1", "network", "ping db.test twice")
Compare = Callable[..., Verdict]


@pytest.fixture(autouse=True)
def no_cache() -> Iterator[None]:
    """What a test's own comparison said must not be remembered."""
    _verdict.cache_clear()
    yield
    _verdict.cache_clear()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, bool]]:
    """What was executed in shell: (reference, command, ordered); a command that starts with `ok` is right."""
    made: list[tuple[str, str, bool]] = []

    def compare(reference: str, command: str, ordered: bool, given: object = None) -> Verdict:
        made.append((reference, command, ordered))
        return Verdict("correct") if command.startswith("ok") else Verdict("wrong", "not ok")

    monkeypatch.setattr(shell, "compare", compare)
    return made


def tasks_of(domain: str, count: int = 4, split: str = "heldout") -> list[Task]:
    return load_domain(domain).tasks(split, count, "tests")


def exact_domain(folder: Path) -> str:
    data = {
        **yaml.safe_load((CONFIGS / "network.yaml").read_text()),
        "name": "mine",
        "verify": {"kind": "exact"},
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return str(path)


# ---- verify ----


def test_verdicts_keep_the_order_of_the_pairs(calls: list[Any]) -> None:
    tasks = tasks_of("shell", 40)
    commands = [f"{'ok' if place % 3 else 'no'} {place}" for place in range(40)]
    assert [verdict.correct for verdict in verify(tasks, commands)] == [
        bool(place % 3) for place in range(40)
    ]
    assert len(calls) == 40


def test_equal_pairs_are_verified_once(calls: list[Any]) -> None:
    first, second = tasks_of("shell", 2)
    verdicts = verify([first, second, first, first, second], ["ok", "ok", "ok", "no", "ok"])
    assert [verdict.status for verdict in verdicts] == ["correct"] * 3 + ["wrong", "correct"]
    assert sorted(calls) == sorted(
        {(reference(first), "ok", False), (reference(second), "ok", False), (reference(first), "no", False)}
    )
    verify([first, second], ["ok", "ok"])
    assert len(calls) == 3  # nor again in a later call


def test_whether_order_counts_is_part_of_a_pair(calls: list[Any]) -> None:
    task = tasks_of("shell", 1)[0]
    verify([task] * 2, ["ok"] * 2, [Case(task, "ls", ordered=False), Case(task, "ls", ordered=True)])
    assert sorted(calls) == [("ls", "ok", False), ("ls", "ok", True)]


def test_cases_are_taken_in_place_of_the_tasks_own(calls: list[Any]) -> None:
    task = tasks_of("shell", 1)[0]
    assert verify([task], ["ok"], [Case(task, "another reference")])[0].correct
    assert calls == [("another reference", "ok", False)]
    assert verify([FOREIGN], ["ping -c 2 db.test"], [Case(FOREIGN, "ping -c2 db.test")])[0].correct


def test_a_task_without_a_reference_is_not_executed(calls: list[Any]) -> None:
    verdicts = verify([FOREIGN, *tasks_of("shell", 1)], ["ping -c 2 db.test", "ok"])
    assert [verdict.status for verdict in verdicts] == ["not_executed", "correct"]
    assert verdicts[0].reason == "the task has no reference"
    assert verify([], []) == []


def test_a_command_for_each_task() -> None:
    with pytest.raises(ValueError):
        verify([FOREIGN], [])
    with pytest.raises(ValueError):
        verify([FOREIGN], ["ls"], [])


@pytest.mark.parametrize("fails", [SandboxError("no sandbox: fix it"), None])
def test_what_could_not_be_executed_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, fails: SandboxError | None
) -> None:
    made: list[str] = []

    def compare(reference: str, command: str, ordered: bool, given: object = None) -> Verdict:
        made.append(command)
        if len(made) > 1:
            return Verdict("correct")
        if fails is not None:
            raise fails
        return Verdict("not_executed", "no sandbox: fix it")

    monkeypatch.setattr(shell, "compare", compare)
    task = tasks_of("shell", 1)[0]
    assert verify([task, task], ["x", "x"]) == [Verdict("not_executed", "no sandbox: fix it")] * 2
    assert verify([task], ["x"])[0].correct
    assert verify([task], ["x"])[0].correct
    assert made == ["x", "x"]  # the second time with success


def test_our_own_mistakes_are_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "compare", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        verify(tasks_of("shell", 1), ["x"])


ODD = [
    "",
    "  ",
    "\n",
    "\0",
    "ls \0",
    "\ud800",
    "ls \ud800",
    "'",
    "((" * 5000,
    "x" * 200_000,
    "\u202e",
    "ls\nls",
    "SELECT '\0'",
    "é🙂",
]


@pytest.mark.parametrize("domain", ["network", "sql"])
def test_no_command_is_too_odd_to_judge(domain: str) -> None:
    task = tasks_of(domain, 1)[0]
    assert {verdict.status for verdict in verify([task] * len(ODD), ODD)} == {"invalid"}


def test_no_command_is_too_odd_to_execute(sandbox: None) -> None:
    task = tasks_of("shell", 1)[0]
    assert {verdict.status for verdict in verify([task] * len(ODD), ODD)} <= {"invalid", "wrong"}


def test_references_of_all_domains_are_right(sandbox: None) -> None:
    """Written with other white space at the end, so that they are not simply equal."""
    tasks = [task for domain in EMBEDDED for task in tasks_of(domain, 5)]
    assert [verdict.status for verdict in verify(tasks, [f"{reference(task)} " for task in tasks])] == [
        "correct"
    ] * 15
    assert [verdict.status for verdict in verify(tasks, ["nonsense"] * 15)] == ["invalid"] * 15
    others = [
        tasks[place - place % 5 + (place + 1) % 5] for place in range(15)
    ]  # another task of the same domain
    assert "correct" not in {
        verdict.status for verdict in verify(tasks, [str(reference(task)) for task in others])
    }


def test_a_domain_that_is_compared_as_text(tmp_path: Path) -> None:
    domain = exact_domain(tmp_path)
    task = tasks_of(domain, 1)[0]
    wanted = str(reference(task))
    verdicts = verify([task] * 4, [wanted, f"  {wanted.replace(' ', '  ')} ", f"{wanted} -v", " "])
    assert [verdict.status for verdict in verdicts] == ["correct", "correct", "wrong", "invalid"]
    assert [verdict.reason for verdict in verdicts] == ["", "", "another text", "empty"]


def test_how_each_domain_is_verified(tmp_path: Path) -> None:
    network, shell_, sql, text = said = [
        how_verified(domain) for domain in (*EMBEDDED, exact_domain(tmp_path))
    ]
    assert "never executed" in network and "as text" in text
    assert shell_.startswith("executed in a sandbox") and sql.startswith("executed in SQLite")
    assert len(set(said)) == 4


# ---- which reference a task has ----


@pytest.mark.parametrize("domain", EMBEDDED)
def test_a_case_says_what_of_its_task_is_unseen(domain: str) -> None:
    cases = [find_case(task) for task in tasks_of(domain, 60)]
    about, seen = load_domain(domain), set()
    for case in cases:
        assert case is not None and case.reference == reference(case.task) != ""
        draw = about.draw("heldout", case.intent, int(case.task.id.rpartition("/")[2]))
        assert draw.task == case.task
        last = draw.paraphrase == len(about.intents[case.intent].paraphrases) - 1
        assert case.unseen == ("paraphrase" if last else "values")
        held_out = [name for name, (said, _) in draw.values.items() if about.slots[name].held_out_value(said)]
        assert bool(held_out) == (case.unseen == "values")
        seen.add(case.unseen)
    assert seen == {"paraphrase", "values"}
    assert {case.unseen for case in map(find_case, tasks_of(domain, 10, "train")) if case} == {""}


def test_only_a_grammars_own_tasks_have_references() -> None:
    task = tasks_of("network", 1)[0]
    kind, intent, index = task.id.split("/")
    forged = [
        Task(task.id, "network", task.text + " now", task.tool),
        Task(task.id, "shell", task.text, task.tool),
        Task(f"{kind}/{intent}/0{index}", "network", task.text, task.tool),
        Task(f"{kind}/nothing/{index}", "network", task.text, task.tool),
        Task(f"{kind}/{intent}/{'9' * 30}", "network", task.text, task.tool),
        Task(f"x{task.id}", "network", task.text, task.tool),
        FOREIGN,
    ]
    assert [find_case(one) for one in forged] == [reference(one) for one in forged] == [None] * 7
    assert exact_match([task, *forged[:1]], [str(reference(task)).replace(" ", "  "), "x"]) == [True, None]
    assert reconstruction_match(task, task.text.upper()) and not reconstruction_match(task, "something else")
    assert reconstruction_match(FOREIGN, FOREIGN.text) is None


def test_order_counts_where_the_domain_says_so() -> None:
    intents = {
        intent["name"]: intent.get("order")
        for intent in yaml.safe_load((CONFIGS / "sql.yaml").read_text())["intents"]
    }
    cases = [case for case in map(find_case, tasks_of("sql", 48)) if case is not None]
    assert all(case.ordered == (intents[case.intent] == "matters") for case in cases)
    assert {case.ordered for case in cases} == {True, False}


# ---- one's own tasks ----


def test_a_file_of_tasks(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [
        {"task": "list  all\tfiles", "reference": " ls -a \n", "ordered": True},
        {
            "task": "zeig das\u2028Verzeichnis\x85an",
            "reference": "ls",
        },  # line separators that are none in JSON lines
    ]
    path.write_bytes(
        b"\xef\xbb\xbf"
        + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
        + b"\r\n \n"
    )
    first, second = read_cases(path, "shell")
    assert first == Case(Task("file/1", "shell", "list all files"), "ls -a", ordered=True)
    assert (second.task.id, second.task.text, second.reference, second.ordered) == (
        "file/3",
        "zeig das Verzeichnis an",
        "ls",
        False,
    )
    assert (second.intent, second.unseen) == ("", "")
    assert find_case(first.task) is None


FAULTS = [
    ('{"task": "a"', "not JSON (Expecting ',' delimiter, column 13): write"),
    ("[" * 100_000, "too deeply nested: write"),
    ('["task"]', "not a JSON object: write"),
    ("null", "not a JSON object: write"),
    ('{"task": "a"}', "reference: is missing: write {"),
    ('{"reference": "a"}', "task: is missing: write {"),
    ('{"task": "", "reference": "a"}', "task: must be a text that is not empty: write {"),
    ('{"task": 3, "reference": "a"}', "task: must be a text that is not empty: write {"),
    ('{"task": null, "reference": "a"}', "task: must be a text that is not empty: write {"),
    ('{"task": "a", "reference": " "}', "reference: must be a text that is not empty: write {"),
    ('{"task": "a", "reference": "b", "ordered": 1}', "ordered: must be true or false: write"),
    ('{"task": "a", "reference": "b", "ordered": "yes"}', "ordered: must be true or false: write"),
    ('{"task": "a", "refrence": "b"}', "refrence: unknown key: did you mean reference?"),
    ('{"task": "a", "reference": "b", "x": 1}', "x: unknown key: use one of task, reference, ordered"),
    ('{"task": "a", "reference": "b", "source": 3}', "source: must be a text: write where"),
    (
        '{"task": "a", "reference": "b", "domain": "sql"}',
        "domain: 'sql' is not one of --domain: use one of shell",
    ),
    (
        '{"task": "a", "reference": "b", "database": "x.sql"}',
        "database: is for domains with verify: {kind: sql}",
    ),
    ('{"task": "a\\ud800", "reference": "b"}', "task: has half of a surrogate pair: write"),
    ('{"task": "a", "reference": "\\udfff"}', "reference: has half of a surrogate pair: write"),
    (b'{"task": "\xff", "reference": "b"}', "not UTF-8 (byte 0xff): save"),
]


@pytest.mark.parametrize(("line", "message"), FAULTS)
def test_a_faulty_line_is_named(tmp_path: Path, line: str | bytes, message: str) -> None:
    path = tmp_path / "mine.jsonl"
    faulty = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b'{"task": "a", "reference": "b"}\n\n' + faulty + b'\n{"task": "a"}\n')
    with pytest.raises(InputError) as error:
        read_cases(path, "shell")
    assert str(error.value).startswith(f"{path}:3: {message}"), error.value


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "no", "no such file: give the path of a JSONL file"),
        (tmp_path, "a folder, not a file: give the path of a file in it"),
    ):
        with pytest.raises(InputError) as error:
            read_cases(path, "shell")
        assert str(error.value).startswith(f"--tasks-file {path}: {message}")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n \n")
    with pytest.raises(InputError, match=r"holds no task: write .*task.*on one line"):
        read_cases(empty, "shell")
