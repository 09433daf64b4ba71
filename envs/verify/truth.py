"""Truth, for evaluation only. Training code must not import this package, directly or through others; a test sees to it.

    verify(tasks, commands) -> verdicts

A domain's file says how its commands are verified: shell commands are executed in a sandbox (`shell`, `sandbox`), queries over an
in-memory database (`sql`), network commands are parsed and never executed (`network`), anything else is compared as text.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from envs.domain import SPLITS, Draw, load_domain
from envs.grammar import ByExecution, ByMeaning, ByQuery, fill
from envs.messages import did_you_mean
from envs.schema import load_spec
from envs.types import InputError, Task
from envs.verify.verdict import Verdict

CACHED = 100_000  # verdicts; the same commands come again cycle after cycle


@dataclass(frozen=True)
class Case:
    """A task with what is right for it.

    Attributes:
        ordered: whether the order of lines (of rows) counts.
        intent: the task's intent in its domain, empty for a task from a file.
        unseen: what no training task has: the wording, values, or (for a task from a file) nothing that is known.
    """

    task: Task
    reference: str
    ordered: bool = False
    intent: str = ""
    unseen: Literal["paraphrase", "values", ""] = ""


def how_verified(domain: str) -> str:
    """How commands of a domain are verified, for a reader; with the tools that execution depends on."""
    kind = load_spec(domain).verify.kind
    if kind == "shell":
        from envs.verify.shell import versions

        return "; ".join(["executed in a sandbox over three file trees", *versions()])
    return {
        "sql": f"executed in SQLite {sqlite3.sqlite_version} over eight fillings",
        "network": "parsed and compared in meaning, never executed",
        "exact": "compared with the reference as text",
    }[kind]


def find_draw(task: Task) -> Draw | None:
    """How a task of a domain's grammar was made, or None for a task that has no reference (proposed or from a file)."""
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


def read_cases(path: Path, domain: str) -> list[Case]:
    """One's own tasks with references: a JSON object a line with `task` and `reference`, and `ordered` where the order of lines counts.

    Args:
        domain: the one domain whose prompts ask for the commands and whose file says how they are verified.

    Raises:
        InputError: the file cannot be read or a line is faulty; names the file, the line and the fix.
    """
    try:
        lines = (
            path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
        )  # nothing else ends a line of JSON
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): give a JSONL file") from None
    where = load_domain(domain).where
    cases = [
        _case(f"{path}:{number}", line, where, number)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not cases:
        raise InputError(f"{path}: holds no task: write one JSON object a line, with task and reference")
    return cases


def _case(place: str, line: bytes, domain: str, number: int) -> Case:
    known: dict[str, type] = {"task": str, "reference": str, "ordered": bool}
    try:
        row: Any = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{place}: not UTF-8 (byte 0x{line[error.start]:02x}): save the file as UTF-8"
        ) from None
    except (ValueError, RecursionError):
        raise InputError(
            f'{place}: not JSON: write {{"task": "...", "reference": "..."}} on one line'
        ) from None
    if not isinstance(row, dict):
        raise InputError(f'{place}: not an object: write {{"task": "...", "reference": "..."}}')
    for key in row:
        if key not in known:
            raise InputError(f"{place}: {key}: unknown key: {did_you_mean(key, known)}")
    for key, kind in known.items():
        if key == "ordered" and key not in row:
            continue
        if not isinstance(row.get(key), kind) or not str(row[key]).strip():
            wanted = "true or false" if kind is bool else "a text that is not empty"
            raise InputError(
                f"{place}: {key}: {'is missing' if key not in row else 'is not ' + wanted}: write {wanted}"
            )
        if kind is str and any("\ud800" <= character <= "\udfff" for character in row[key]):
            raise InputError(f"{place}: {key}: has half of a surrogate pair: write the whole character")
    task = Task(f"file/{number}", domain, " ".join(row["task"].split()))
    return Case(task, row["reference"].strip(), bool(row.get("ordered", False)))


def reference(task: Task) -> str | None:
    """The reference command of a task, or None where it has none."""
    draw = find_draw(task)
    return command_of(task.domain, draw.intent, draw.values) if draw else None


def verify(
    tasks: Sequence[Task], commands: Sequence[str], cases: Sequence[Case] | None = None
) -> list[Verdict]:
    """What each command does, compared with what its task's reference does. Equal pairs are verified once; on a pool of threads.

    Args:
        tasks: one for each command.
        cases: what is right for each of the tasks, where they are not of a domain's grammar.

    Returns:
        A verdict for each pair. Never raises for what a command is or does.
    """
    if cases is None:
        known = {task: find_case(task) for task in set(tasks)}
        found = [known[task] for task in tasks]
    else:
        found = list(cases)
    keys = [
        None if case is None else (case.task.domain, case.reference, case.ordered, command)
        for case, command in zip(found, commands, strict=True)
    ]
    pending = list(dict.fromkeys(key for key in keys if key is not None))
    verdicts = dict(zip(pending, _pool().map(_tried, pending), strict=True))
    nothing = Verdict("not_executed", "the task has no reference")
    return [nothing if key is None else verdicts[key] for key in keys]


@functools.cache
def _pool() -> ThreadPoolExecutor:
    # Threads that live as long as the process: the sandbox's processes die with the thread that started them.
    return ThreadPoolExecutor(2 * (os.cpu_count() or 1), thread_name_prefix="verify")


class _NotExecutedError(Exception):
    """Carries a verdict past the cache: a machine that was too busy for a reference, or could start no process, may recover."""


def _tried(key: tuple[str, str, bool, str]) -> Verdict:
    try:
        return _verdict(*key)
    except _NotExecutedError as error:
        verdict: Verdict = error.args[0]
        return verdict


@functools.lru_cache(maxsize=CACHED)
def _verdict(domain: str, reference: str, ordered: bool, command: str) -> Verdict:
    from envs.verify.sandbox.errors import SandboxError

    try:
        verdict = _compared(domain, reference, ordered, command)
    except SandboxError as error:
        verdict = Verdict("not_executed", str(error))
    if verdict.status == "not_executed":
        raise _NotExecutedError(verdict)
    return verdict


def _compared(domain: str, reference: str, ordered: bool, command: str) -> Verdict:
    from envs.verify import (  # only now, so that `python -m envs.verify.sandbox` is not imported twice
        network,
        shell,
        sql,
    )

    how = load_spec(domain).verify
    if isinstance(how, ByExecution):
        return shell.compare(reference, command, ordered)
    if isinstance(how, ByQuery):
        return sql.compare(domain, reference, command, ordered)
    if isinstance(how, ByMeaning):
        return network.compare(reference, command)
    if not command.strip():
        return Verdict("invalid", "empty")
    same = command.split() == reference.split()
    return Verdict("correct") if same else Verdict("wrong", "another text")


def exact_match(tasks: Sequence[Task], commands: Sequence[str]) -> list[bool | None]:
    """Whether each command equals its task's reference but for white space; None where the task has no reference."""
    verdicts: list[bool | None] = []
    for task, command in zip(tasks, commands, strict=True):
        wanted = reference(task)
        verdicts.append(None if wanted is None else command.split() == wanted.split())
    return verdicts


def reconstruction_match(task: Task, text: str) -> bool | None:
    """Whether `text` says what `task` says, in any paraphrase of its intent; None where the task has no reference."""
    draw = find_draw(task)
    return load_domain(task.domain).recognise(draw.intent, draw.values, text) if draw else None
