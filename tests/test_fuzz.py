"""Whatever is in a file, on the command line or in an answer: it is read, or refused in one line.

    make fuzz        draws new examples for half an hour; without it they are the same few each time

What was found is kept as an `example`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fabricated import make_run, write_lines
from fuzzing import ODD, altered, damaged, no_hang, read_or_refused, sentences, texts, values
from hypothesis import example, given
from hypothesis import strategies as st
from test_domain import GOOD

from agents import compare, evaluate, export, ppo, rejection_sft, sft, study
from agents.cli.command import parse as parse_command
from agents.cli.values import read_settings
from agents.policy.labels import read_labels
from agents.studies.plan import read_plan
from agents.studies.runs import read_run, read_selection, read_truth
from agents.training.pairs import read_pairs
from agents.training.recorded import read_candidates
from agents.training.rollouts import read_accepted
from agents.training.run import Run
from envs.answers import first_line, take_out
from envs.domain import load_domain
from envs.jsonl import read_jsonl
from envs.schema import load_spec
from envs.shellgrammar import parse
from envs.shellwords import ShellSyntaxError, split, tokens
from envs.source import make_source
from envs.types import Task
from envs.verify.network.compare import compare as compare_network
from envs.verify.truth import read_cases
from envs.yamlfile import read_yaml
from rewards.blend import read_blend
from rewards.gates import gate
from rewards.registry import REWARDS
from rewards.text import plain_words

CONFIGS = Path(__file__).parents[1] / "configs"
YAML = [
    *(
        "&a ",
        "*a",
        "<<: *a\n",
        "? ",
        "- ",
        "| ",
        "> ",
        "---\n",
        "...\n",
        "%YAML 1.1\n",
        "# ",
        "\n",
        "  ",
        ": ",
        "[",
        "]",
    ),
    *(
        "!!python/object/apply:os.system [id]",
        "!!binary ",
        "!!timestamp 2026-99-99",
        "!!set ",
        "!!float ",
        "!x ",
    ),
    *("2026-99-99", "12:30:45", "0b1", ".nan", ".inf", "1e999", "=", "!!int ''", "&a [*a]", "{a: *a}"),
]
STUDY = (CONFIGS / "studies" / "trainers.yaml").read_text(encoding="utf-8")
BLEND = (CONFIGS / "rewards" / "example.yaml").read_text(encoding="utf-8")
HINTS = {"lr": float, "tasks": int, "gates": bool, "reward": str, "name": str | None}
numbers = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@contextlib.contextmanager
def saved(folder: Path, content: str | bytes, suffix: str) -> Iterator[Path]:
    """A file of a name that nothing has read yet."""
    path = folder / f"{next(numbers)}{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    try:
        yield path
    finally:
        path.unlink()


def is_plain(value: Any) -> bool:
    """Whether a value is what the reader promises: nothing that a tag could have made."""
    if isinstance(value, dict):
        return all(type(key) in (str, int) and is_plain(inner) for key, inner in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return type(value) in (str, int, float, bool, type(None))


# ---- YAML ----


@given(st.one_of(st.binary(max_size=200), damaged([GOOD[:1500], STUDY, BLEND, "a: [1, {b: c}]\n"], YAML)))
@example("a: !!float ''")
@example("!!int '': 1")
def test_yaml(folder: Path, content: str | bytes) -> None:
    with saved(folder, content, ".yaml") as path:
        file = read_or_refused(read_yaml, path)
        if file is None:
            return
        assert is_plain(file.data)
        with contextlib.suppress(yaml.YAMLError, ValueError, TypeError):
            wanted = yaml.safe_load(path.read_bytes())
            # NaN is not equal to itself. Of nothing with a tag `!` we make a text, and PyYAML nothing.
            assert repr(file.data) == repr(wanted) or b"!" in path.read_bytes()


@given(damaged([GOOD], YAML))
def test_domains_as_text(folder: Path, content: str) -> None:
    with saved(folder, content, ".yaml") as path:
        read_or_refused(load_spec, str(path))


@given(altered(yaml.safe_load(GOOD)))
def test_domains_as_values(folder: Path, content: Any) -> None:
    with saved(folder, yaml.safe_dump(content, allow_unicode=True), ".yaml") as path:
        domain = read_or_refused(load_domain, str(path))
        if domain is not None:
            tasks = domain.tasks("train", 3, 0)
            assert all(task.text == " ".join(task.text.split()) != "" for task in tasks)


@given(st.dictionaries(st.sampled_from([*HINTS, "resume", "x"]) | texts, values, max_size=4))
def test_settings(folder: Path, content: Any) -> None:
    with saved(folder, yaml.safe_dump(content, allow_unicode=True), ".yaml") as path:
        found = read_or_refused(read_settings, path, HINTS, ("resume",))
        assert found is None or set(found[0]) <= set(HINTS)


@given(altered(yaml.safe_load(BLEND)))
def test_blends(folder: Path, content: Any) -> None:
    with saved(folder, yaml.safe_dump(content, allow_unicode=True), ".yaml") as path:
        found = read_or_refused(read_blend, str(path), list(REWARDS))
        assert found is None or sum(found.weights.values()) > 0


@pytest.mark.slow
@given(altered(yaml.safe_load(STUDY)))
@example({"arms": {"a": {"trainer": []}}})
@example({"arms": {"a": {}}, "trainer": {"b": 1}})
def test_studies(folder: Path, content: Any) -> None:
    with saved(folder, yaml.safe_dump(content, allow_unicode=True), ".yaml") as path:
        read_or_refused(read_plan, path, study.TRAINERS)


# ---- JSONL ----

ROWS = [
    '{"task": "list all files", "command": "ls -a", "domain": "shell"}',
    '{"task": "count them", "reference": "ls | wc -l", "tree": {"a.txt": "x"}, "ordered": true}',
    '{"task": "all", "reference": "SELECT 1", "database": "CREATE TABLE a (b INTEGER);", "domain": "sql"}',
]
JSON = [
    "[",
    "{",
    '{"a":' * 5000,
    "\\ud83d",
    "\\u0000",
    "NaN",
    "1" * 5000,
    "\n",
    '"',
    ",",
    ": ",
    "null",
    "[" * 5000,
]
lines = st.one_of(st.binary(max_size=100), st.lists(damaged(ROWS, JSON), max_size=3).map("\n".join))


@given(lines)
def test_jsonl(folder: Path, content: str | bytes) -> None:
    with saved(folder, content, ".jsonl") as path:
        for log in (False, True):
            read_or_refused(lambda log: list(read_jsonl(path, log=log)), log)


@given(lines)
def test_files_of_tasks(folder: Path, content: str | bytes) -> None:
    with saved(folder, content, ".jsonl") as path:
        read_or_refused(make_source, str(path), "shell,sql")
        read_or_refused(read_cases, path, "shell,sql")
        read_or_refused(read_pairs, path, [load_domain("shell"), load_domain("sql")], ())


# ---- runs ----


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run for the readers of finished runs."""
    run = make_run(tmp_path_factory.mktemp("runs") / "made", task_source="templates", candidates=2)
    rows = []
    for task, command, accepted in (
        ("list files", "ls", True),
        ("list files", "ls -a", False),
        ("x", "ls", True),
    ):
        rows.append(
            {"cycle": 1, "phase": "before", "task_id": "t/1", "domain": "shell", "task": task, "tool": "ls"}
            | {
                "command": command,
                "answer": command,
                "token_ids": [1, 2],
                "logprob": -1.5,
                "truncated": False,
            }
            | {"score": 0.5, "parts": {}, "reconstruction": None, "reason": "", "accepted": accepted}
        )
    write_lines(run / "rollouts.jsonl", rows)
    (run / "selection.json").write_text('{"cycles": [1], "written": {"value": 1}, "accepted": {"value": 1}}')
    (run / "labels.json").write_text('{"labels": 3}')
    return run


def everything(run: Path) -> None:
    """What is read of a run by compare, evaluate, export and the bench of updates."""
    record = read_run(run)
    for when in ("start", "end"):
        read_truth(record, when)
    read_selection(record)
    export.examples_of(record, export.Config(("x",)), messages=False)


def candidates(run: Path) -> None:
    config = rejection_sft.Config(cycles=1, tasks=1, candidates=1, model="embedded", domain="all")
    read_candidates(run, config, ())


LOGS = ("metrics.jsonl", "timings.jsonl", "truth.jsonl", "rollouts.jsonl")
FILES = (
    *LOGS,
    "config.yaml",
    "progress.json",
    "self_improvement_results.json",
    "selection.json",
    "labels.json",
)


@st.composite
def damage(draw: st.DrawFn, names: tuple[str, ...]) -> tuple[str, Callable[[bytes], bytes]]:
    """A file, and what becomes of its content."""
    name = draw(st.sampled_from(names))
    if name.endswith(".json") and draw(st.booleans()):
        other = draw(values)
        return name, lambda _: json.dumps(other).encode()
    if name.endswith(".jsonl") and draw(st.booleans()):
        where, key, other = draw(st.integers(0, 9)), draw(st.integers(0, 30)), draw(values)
        return name, lambda content: with_another_value(content, where, key, other)
    share, size = draw(st.floats(0, 1)), draw(st.integers(0, 30))
    piece = draw(st.sampled_from([*ODD, *JSON])).encode()

    def spliced(content: bytes) -> bytes:
        start = int(share * len(content))
        return content[:start] + piece + content[start + size :]

    return name, spliced


def with_another_value(content: bytes, where: int, key: int, other: Any) -> bytes:
    """A log in which one row has another value under one of its keys."""
    rows = [json.loads(line) for line in content.splitlines()]
    row = rows[where % len(rows)]
    row[sorted(row)[key % len(row)]] = other
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@contextlib.contextmanager
def changed(run: Path, name: str, change: Callable[[bytes], bytes]) -> Iterator[None]:
    """A run with one file changed, for a while."""
    before = (run / name).read_bytes()
    (run / name).write_bytes(change(before))
    try:
        yield
    finally:
        (run / name).write_bytes(before)


@given(damage(FILES))
@example(("rollouts.jsonl", lambda _: b'{"accepted": true, "phase": "before"}\n'))
@example(("rollouts.jsonl", lambda content: content.replace(b'"parts": {}', b'"parts": 1')))
@example(("config.yaml", lambda content: content.replace(b"cycles: 4", b"cycles: 4 2")))
@example(("labels.json", lambda _: b"[" * 5000))
@example(("selection.json", lambda _: b"[" * 5000))
def test_finished_runs(made: Path, damage: tuple[str, Callable[[bytes], bytes]]) -> None:
    with changed(made, *damage):
        read_or_refused(everything, made)
        read_or_refused(candidates, made)
        read_or_refused(read_labels, made)
        read_or_refused(read_accepted, made / "rollouts.jsonl", ("before",))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints."""
    run = Run.create(
        tmp_path_factory.mktemp("resumed") / "run", {"agent": "x", "cycles": 3}, tensorboard=False
    )
    for cycle in (1, 2):
        run.scalars(cycle * 10, cycle, {"reward/mean": 0.5, "time/train": 1.0})
        run.append("rollouts", [{"cycle": cycle}] * 3)
        run.commit(
            cycle, {"best": {"1": 0.5}}, lambda folder: (folder / "weights").write_bytes(b"w" * 40) and None
        )
    run.close()
    return run.folder


def resumed(folder: Path) -> None:
    run, config = Run.open(folder, tensorboard=False)
    try:
        assert isinstance(config, dict)
        run.restore()
    finally:
        run.close()


def log_outside(state: bytes) -> bytes:
    """A log that is no file of the run: to go back to its length would empty it."""
    record = json.loads(state)
    record["logs"] = {"../outside.jsonl": {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}}
    return json.dumps(record).encode()


INSIDE = ("metrics.jsonl", "rollouts.jsonl", "config.yaml", "environment.json")
INSIDE += tuple(
    f"checkpoints/cycle-000{cycle}/{name}"
    for cycle in (1, 2)
    for name in ("COMPLETE", "state.json", "weights")
)


@given(damage(INSIDE), st.booleans())
@example(("checkpoints/cycle-0002/COMPLETE", lambda _: b"[" * 5000), False)
@example(("checkpoints/cycle-0002/state.json", lambda _: b"[" * 5000), True)
@example(("checkpoints/cycle-0002/state.json", log_outside), True)
def test_resumed_runs(checkpoints: Path, damage: tuple[str, Callable[[bytes], bytes]], sealed: bool) -> None:
    """Sealed: whoever changed the file also wrote its sum, as somebody else's run may have any content."""
    name, change = damage
    copied = checkpoints.parent / f"copy-{next(numbers)}"
    outside = checkpoints.parent / "outside.jsonl"
    outside.write_text("mine\n")
    shutil.copytree(checkpoints, copied)
    try:
        path = copied / name
        path.write_bytes(change(path.read_bytes()))
        if sealed and path.name == "state.json":
            seal(path.parent)
        read_or_refused(resumed, copied)
        assert outside.read_text() == "mine\n"
    finally:
        shutil.rmtree(copied)


def seal(checkpoint: Path) -> None:
    from agents.training.disk import sha256

    names = ("state.json", "weights")
    (checkpoint / "COMPLETE").write_text(
        json.dumps({"sha256": {name: sha256(checkpoint / name) for name in names}})
    )


# ---- the command line ----

CONFIGS_OF = {
    "rejection_sft": rejection_sft,
    "ppo": ppo,
    "sft": sft,
    "evaluate": evaluate,
    "compare": compare,
}
CONFIGS_OF |= {"study": study, "export": export}


@st.composite
def argv(draw: st.DrawFn) -> tuple[str, list[str]]:
    agent = draw(st.sampled_from(sorted(CONFIGS_OF)))
    flags = ["--" + field.name.replace("_", "-") for field in dataclasses.fields(CONFIGS_OF[agent].Config)]
    words: list[str] = []
    for _ in range(draw(st.integers(0, 4))):
        words.append(draw(st.one_of(st.sampled_from(flags), damaged(flags), texts)))
        words += draw(st.lists(texts, max_size=2))
    return agent, [word for word in words if not {"-h", "--help"} & {word}]


@pytest.mark.slow
@given(argv())
@example(("compare", ["\0"]))
@example(("study", [""]))
def test_command_lines(given: tuple[str, list[str]]) -> None:
    agent, words = given
    with contextlib.suppress(SystemExit):
        read_or_refused(parse_command, CONFIGS_OF[agent].Config, words, agent)


# ---- answers and commands ----

ANSWERS = [
    "Sure! Here it is:\n```bash\n$ ls -l\n```\n",
    "<think>hm</think>\n**Command:** `ls -l`",
    '{"command": "ls"}',
    "<command>ls \\\n -l</command>",
    "1. `ls`\n2. `ls -l`\nUse this: ls",
    "sqlite> SELECT a,\n b\nFROM t;",
]
MARKS = [
    "```",
    "`",
    "<think>",
    "</think>",
    "<command>",
    "</command>",
    "it ",
    ":",
    "$ ",
    "\\\n",
    "|",
    "**",
    "{",
    "- ",
]


@given(damaged(ANSWERS, MARKS) | sentences)
@example(" \\\n -l</command>")
@example('{"a":' * 5000)
@example("<think>" * 20_000)
@example("<command>" * 20_000)
@example("it " * 30_000)
def test_answers(answer: str) -> None:
    with no_hang():
        found = take_out(answer)
        assert first_line(answer).count("\n") == 0
    if found.command is None:
        assert found.reason
        return
    assert "\n" not in found.command.strip() == found.command != ""
    assert not found.reason


COMMANDS = [
    "sort -k 2 'a b.txt' | head -n 3 > \"$HOME/x\" # top",
    "for f in *.txt; do if [ -f $f ]; then wc -l < $f; fi; done",
    "SELECT name, COUNT(*) FROM employees WHERE age > 30 GROUP BY 1 ORDER BY 2 DESC LIMIT 5;",
    "find . -name '*.log' -exec rm {} \\; -o -mtime +3",
    "nmap -sS -p 1-100,443 10.0.0.0/24 | grep open",
]
SHELL = [
    *"|&;()<>$`'\"\\{}#!= \t\n",
    "$(",
    "${",
    "$((",
    "))",
    "<<E\nE\n",
    "<(",
    "2>&1",
    "do ",
    "if ",
    "/*",
    "--",
    "sudo ",
]
commands = damaged(COMMANDS, SHELL)


@given(commands)
def test_shell_lines(line: str) -> None:
    with no_hang(), contextlib.suppress(ShellSyntaxError):
        found = tokens(line)
        end = 0
        for token in found:
            assert token.text == line[token.start : token.end] and token.start >= end
            end = token.end
        split(line)
        parse(line)


TASKS = [
    Task("t/1", "shell", "sort the file a b.txt by the second column", "sort"),
    Task("t/2", "sql", "how many employees are older than 30", "sqlite"),
    Task("t/3", "network", "scan the ports 1 to 100 and 443", "nmap"),
]


@given(st.sampled_from(TASKS), commands | sentences, sentences)
def test_gates(task: Task, command: str, text: str) -> None:
    with no_hang():
        for asked in (task, dataclasses.replace(task, text=text)):
            found = gate(asked, command)
            assert set(found.factors.values()) <= {0.0, 1.0}
            assert bool(found.reason) == (0.0 in found.factors.values())
            assert len(found.command) <= len(command)
            assert plain_words(text) is not None


NETWORK = [
    "nmap -sV -p 22,80-90 --open 10.0.0.0/24",
    "curl -s -X POST -H 'A: b' -d x=1 https://a.test:8443/p?q=1#f",
    "dig +short @1.1.1.1 mx a.test",
    "ss -tlnp 'sport = :22 or dport >= 80'",
    "ping -c 3 -i 0.5 db.test | grep ttl",
    "nc -zvw 3 a.test 20-25",
    "traceroute -m 5 -n a.test",
]
OPTIONS = [
    "-p ",
    "-",
    "--",
    "=",
    ",",
    ":",
    "/",
    "-c",
    "10.0.0.1-255",
    "999999999999",
    "::1",
    "+",
    "@",
    "or ",
    "( ",
    "!",
]


@given(st.sampled_from(NETWORK), damaged(NETWORK, [*SHELL, *OPTIONS]))
def test_network_commands(reference: str, command: str) -> None:
    with no_hang():
        verdict = compare_network(reference, command)
        assert verdict.status in ("correct", "wrong", "invalid")
        assert compare_network(command, command).status in ("correct", "not_executed")
