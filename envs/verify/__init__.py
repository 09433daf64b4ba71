"""Truth, for evaluation only. Training code must not import this package, directly or through others; a test sees to it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from envs.domain import SPLITS, Draw, load_domain
from envs.grammar import fill
from envs.schema import load_spec
from envs.types import Task


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


def reference(task: Task) -> str | None:
    """The reference command of a task, or None where it has none."""
    draw = find_draw(task)
    return command_of(task.domain, draw.intent, draw.values) if draw else None


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
