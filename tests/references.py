"""The reference commands of tasks, as tests want them."""

from __future__ import annotations

from collections.abc import Sequence

from envs.types import Task
from envs.verify.truth import find_case


def reference(task: Task) -> str | None:
    """The reference command of a task, or None where it has none."""
    case = find_case(task)
    return case.reference if case else None


def exact_match(tasks: Sequence[Task], commands: Sequence[str]) -> list[bool | None]:
    """Whether each command equals its task's reference white space aside; None where there is none."""
    verdicts: list[bool | None] = []
    for task, command in zip(tasks, commands, strict=True):
        wanted = reference(task)
        verdicts.append(None if wanted is None else command.split() == wanted.split())
    return verdicts
