"""What is right, for evaluation only. Training code must not import this package; a test sees to it.

    verify(tasks, commands) -> verdicts

A domain's file says how its commands are verified. Shell commands are executed in a sandbox (`shell`),
queries over an in-memory database (`sql`). Network commands are parsed and never executed (`network`).
Anything else is compared as text.
"""

from __future__ import annotations

import functools
import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from envs.domain import SPLITS, Domain, Draw, domain_names, load_domain
from envs.grammar import ByExecution, ByMeaning, ByQuery, fill
from envs.jsonl import read_jsonl
from envs.messages import did_you_mean
from envs.schema import load_spec
from envs.source import check_length, domain_of_row
from envs.types import InputError, Task
from envs.verify import shell, sql
from envs.verify.given import GivenDatabase, GivenTree, Giver
from envs.verify.network import compare as network
from envs.verify.pool import pool
from envs.verify.sandbox.errors import SandboxError
from envs.verify.verdict import Verdict

CACHED = 100_000  # verdicts; the same commands come again cycle after cycle
Given = GivenTree | GivenDatabase | None
Key = tuple[str, str, bool, Given, str]  # domain, reference, whether order counts, what is given, command
KEYS = ("task", "reference", "ordered", "domain", "source", "tree", "database")
CASE = 'write {"task": "...", "reference": "..."} on one line'


@dataclass(frozen=True)
class Case:
    """A task with what is right for it.

    Attributes:
        ordered: whether the order of lines (of rows) counts.
        intent: the task's intent in its domain, empty for a task from a file.
        unseen: what no training task has, its wording or its values; empty where that is not known.
        source: where a task from a file comes from, in any words.
        given: the file tree or the database that a task from a file brings along.
    """

    task: Task
    reference: str
    ordered: bool = False
    intent: str = ""
    unseen: Literal["paraphrase", "values", ""] = ""
    source: str = ""
    given: Given = None


def how_verified(domain: str) -> str:
    """How commands of a domain are verified, for a reader; with the tools that execution depends on."""
    kind = load_spec(domain).verify.kind
    if kind == "shell":
        return "; ".join(["executed in a sandbox over three file trees, or a task's own", *shell.versions()])
    return {
        "sql": f"executed in SQLite {sqlite3.sqlite_version} over eight fillings, or a task's own database",
        "network": "parsed and compared in meaning, never executed",
        "exact": "compared with the reference as text",
    }[kind]


def find_draw(task: Task) -> Draw | None:
    """How a task of a domain's grammar was made; None for a task from elsewhere, which has no reference."""
    parts = re.fullmatch(rf"({'|'.join(SPLITS)})/([^/]+)/([0-9]{{1,20}})", task.id)
    domain = load_domain(task.domain)
    if not parts or parts[2] not in domain.intents:
        return None
    draw = domain.draw(parts[1], parts[2], int(parts[3]))
    return draw if draw.task == task else None


def command_of(domain: str, intent: str, values: dict[str, tuple[str, str]]) -> str:
    """The reference command of an intent with these slot values."""
    spec = next(spec for spec in load_spec(domain).intents if spec.name == intent)
    return fill(spec.command, {name: written for name, (_, written) in values.items()})


def find_case(task: Task) -> Case | None:
    """What is right for a task of a domain's grammar, or None where that is not known."""
    draw = find_draw(task)
    if draw is None:
        return None
    spec = next(spec for spec in load_spec(task.domain).intents if spec.name == draw.intent)
    last = len(load_domain(task.domain).intents[draw.intent].paraphrases) - 1
    unseen: Literal["paraphrase", "values", ""] = ""
    if task.id.startswith("heldout/"):
        unseen = "paraphrase" if draw.paraphrase == last else "values"
    return Case(
        task, command_of(task.domain, draw.intent, draw.values), spec.order == "matters", draw.intent, unseen
    )


def labelled_pairs(domain: str, count: int) -> list[tuple[Task, str]]:
    """Tasks of a domain with their commands: the file's own `examples`, then pairs of the split `pretrain`.

    Neither training without labels nor the evaluation uses that split.
    """
    pairs = []
    for number, example in enumerate(load_spec(domain).examples[:count]):
        pairs.append((Task(f"example/{number}", domain, example.task), example.command))
    for task in load_domain(domain).tasks("pretrain", count - len(pairs), "shots"):
        case = find_case(task)
        if case is not None:
            pairs.append((task, case.reference))
    return pairs


def read_cases(path: Path, domain: str) -> list[Case]:
    """Tasks of a file with their references: one JSON object per line, with the keys of `KEYS`.

    Args:
        domain: as in the command's flag: those whose prompts ask for the commands and whose files say how
            they are verified. A line need not name its domain where there is one.

    Raises:
        InputError: the file cannot be read or a line is faulty; names the file, the line and the fix.
    """
    domains = [load_domain(name) for name in domain_names(domain)]
    giver = Giver(path.parent)
    cases = []
    try:
        for number, row in read_jsonl(path, "--tasks-file", CASE):
            cases.append(_case(f"{path}:{number}", row, domains, giver, number))
    except FileNotFoundError:
        raise InputError(f"--tasks-file {path}: no such file: give the path of a JSONL file") from None
    if not cases:
        raise InputError(f"{path}: holds no task: {CASE}")
    return cases


def _case(place: str, row: dict[str, Any], domains: Sequence[Domain], giver: Giver, number: int) -> Case:
    for key in row:
        if key not in KEYS:
            raise InputError(f"{place}: {key}: unknown key: {did_you_mean(key, KEYS)}")
    for key in ("task", "reference"):
        if key not in row:
            raise InputError(f"{place}: {key}: is missing: {CASE}")
        if not isinstance(row[key], str) or not row[key].strip():
            raise InputError(f"{place}: {key}: must be a text that is not empty: {CASE}")
        check_length(f"{place}: {key}", row[key])
    ordered = row.get("ordered", False)
    if not isinstance(ordered, bool):
        raise InputError(f"{place}: ordered: must be true or false: write one of them")
    source = row.get("source", "")
    if not isinstance(source, str):
        raise InputError(f"{place}: source: must be a text: write where the task comes from, or leave it out")
    where = domain_of_row(place, row, domains).where
    given = _given(place, row, where, giver)
    system = given.schema() if isinstance(given, GivenDatabase) else ""
    task = Task(f"file/{number}", where, " ".join(row["task"].split()), system=system)
    return Case(task, row["reference"].strip(), ordered, source=source.strip(), given=given)


def _given(place: str, row: dict[str, Any], domain: str, giver: Giver) -> Given:
    """The tree or the database of a line; None where it has neither."""
    kind = load_spec(domain).verify.kind
    for key, needed in (("tree", "shell"), ("database", "sql")):
        if key in row and kind != needed:
            why = f"is for domains with verify: {{kind: {needed}}}, and {domain} has {kind}"
            raise InputError(f"{place}: {key}: {why}: leave it out")
    try:
        if "tree" in row:
            return giver.tree(row["tree"])
        return giver.database(row["database"]) if "database" in row else None
    except ValueError as error:
        key = "tree" if "tree" in row else "database"
        raise InputError(f"{place}: {key}: {error}") from None


def verify(
    tasks: Sequence[Task], commands: Sequence[str], cases: Sequence[Case] | None = None
) -> list[Verdict]:
    """What each command does, compared with what its task's reference does.

    Equal pairs are verified once, on a pool of threads.

    Args:
        tasks: one for each command.
        cases: what is right for each of the tasks, for tasks that no domain's grammar made.

    Returns:
        A verdict for each pair. Never raises for what a command is or does.
    """
    if cases is None:
        known = {task: find_case(task) for task in set(tasks)}
        found = [known[task] for task in tasks]
    else:
        found = list(cases)
    keys: list[Key | None] = []
    for case, command in zip(found, commands, strict=True):
        keys.append(_key(case, command) if case is not None else None)
    pending = list(dict.fromkeys(key for key in keys if key is not None))
    verdicts = dict(zip(pending, pool().map(_tried, pending), strict=True))
    nothing = Verdict("not_executed", "the task has no reference")
    return [nothing if key is None else verdicts[key] for key in keys]


def _key(case: Case, command: str) -> Key:
    return (case.task.domain, case.reference, case.ordered, case.given, command)


class _NotExecutedError(Exception):
    """Carries a verdict past the cache: a busy machine, or one that could start no process, may recover."""


def _tried(key: Key) -> Verdict:
    try:
        return _verdict(*key)
    except _NotExecutedError as error:
        verdict: Verdict = error.args[0]
        return verdict


@functools.lru_cache(maxsize=CACHED)
def _verdict(domain: str, reference: str, ordered: bool, given: Given, command: str) -> Verdict:
    try:
        verdict = _compared(domain, reference, ordered, given, command)
    except SandboxError as error:
        verdict = Verdict("not_executed", str(error))
    if verdict.status == "not_executed":
        raise _NotExecutedError(verdict)
    return verdict


def _compared(domain: str, reference: str, ordered: bool, given: Given, command: str) -> Verdict:
    how = load_spec(domain).verify
    if isinstance(how, ByExecution):
        return shell.compare(reference, command, ordered, given if isinstance(given, GivenTree) else None)
    if isinstance(how, ByQuery):
        database = given if isinstance(given, GivenDatabase) else None
        return sql.compare(domain, reference, command, ordered, database)
    if isinstance(how, ByMeaning):
        return network.compare(reference, command)
    if not command.strip():
        return Verdict("invalid", "empty")
    same = command.split() == reference.split()
    return Verdict("correct") if same else Verdict("wrong", "another text")


def reconstruction_match(task: Task, text: str) -> bool | None:
    """Whether `text` says what `task` says, in any paraphrase of its intent; None without a reference."""
    draw = find_draw(task)
    return load_domain(task.domain).recognise(draw.intent, draw.values, text) if draw else None
