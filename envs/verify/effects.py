"""What the commands of one task do, for a vote among them. No task and no reference comes in here.

    effects_of(domain, commands) -> one text for each command; equal texts, equal effects

Shell commands are executed in the sandbox, and queries over fillings, as for a verdict. What a verdict makes
for the reference, file trees and fillings, is made here for what all the commands name together. Network
commands are never executed: their effect is their meaning, as the parser of `network` reads it. In a domain
whose commands are compared as text, it is the text.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from envs.grammar import ByExecution, ByMeaning, ByQuery
from envs.schema import load_spec
from envs.types import InputError
from envs.verify import shell, sql
from envs.verify.network.compare import meaning
from envs.verify.pool import pool
from envs.verify.sandbox.errors import SandboxError
from envs.verify.trees import names_of_all


def effects_of(domain: str, commands: Sequence[str]) -> list[str] | None:
    """What each command does, as a text that says no more than whether two do the same.

    Equal commands are executed once. The order in which they come does not matter.

    Args:
        domain: the name of an embedded domain or the path of a domain's file.

    Returns:
        An empty text for a command that fails, or of which nothing shows. None where one of them cannot be
        executed here, because a vote needs all voters.
    """
    different = sorted(set(commands))
    try:
        found = dict(zip(different, pool().map(_effect(domain, different), different), strict=True))
    except (SandboxError, InputError):  # no sandbox, a machine that is too busy, no worker for queries
        return None
    return [found[command] for command in commands]


def _effect(domain: str, commands: Sequence[str]) -> Callable[[str], str]:
    """How the effect of each of these commands is found."""
    how = load_spec(domain).verify
    if isinstance(how, ByExecution):
        return functools.partial(shell.effect, names_of_all(commands))
    if isinstance(how, ByQuery):
        return functools.partial(sql.effect, sql.fillings_for(domain, commands))
    if isinstance(how, ByMeaning):
        return meaning
    return _text


def _text(command: str) -> str:
    return " ".join(command.split())
