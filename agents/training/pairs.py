"""Labelled pairs for supervised fine-tuning: from a file, or handed in; and those that are held back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from envs.domain import Domain
from envs.jsonl import read_jsonl
from envs.source import Templates, check_length, domain_of_row, plain_text
from envs.streams import stream
from envs.types import InputError, Task

PAIR = 'write {"task": "...", "command": "..."} on one line'


class Pair(NamedTuple):
    """A task and its reference command."""

    task: Task
    command: str


def draw_pairs(
    domains: Sequence[Domain], count: int, seed: int, reference: Callable[[Task], str | None]
) -> list[Pair]:
    """Up to `count` pairs of the domains' split `pretrain`: fewer where sentences repeat.

    Args:
        reference: looks up the command of a task; None leaves the task out.
    """
    tasks = Templates(domains, split="pretrain").tasks(count, seed, "pairs")
    different = {(task.domain, task.text): task for task in tasks}
    pairs = []
    for task in different.values():
        command = reference(task)
        if command is not None:
            pairs.append(Pair(task, command))
    return pairs


def read_pairs(path: Path, domains: Sequence[Domain], exclude: Collection[str]) -> list[Pair]:
    """The pairs of a JSONL file, each once.

    Args:
        domains: of which a row may name one; with a single domain it need not.
        exclude: texts of tasks that must not be trained on, such as those of the evaluation.

    Raises:
        InputError: the file cannot be read, a line is faulty, or fewer than two pairs are left.
    """
    excluded = set(map(plain_text, exclude))
    found: dict[tuple[str, str, str], Pair] = {}
    try:
        for number, row in read_jsonl(path, "--pairs", PAIR):
            pair = _pair(f"{path}:{number}", f"{path.name}/{number}", row, domains)
            if plain_text(pair.task.text) not in excluded:
                found.setdefault((pair.task.domain, pair.task.text, pair.command), pair)
    except FileNotFoundError:
        raise InputError(f"--pairs {path}: no such file: give the path of a JSONL file") from None
    if len(found) < 2:
        left = f"{len(found)} different pairs without tasks of the evaluation"
        raise InputError(f"--pairs {path}: has {left}: give 2 or more")
    return list(found.values())


def _pair(place: str, name: str, row: Mapping[str, Any], domains: Sequence[Domain]) -> Pair:
    for key in ("task", "command"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise InputError(f"{place}: {key}: is missing or not a text: {PAIR}")
        check_length(f"{place}: {key}", row[key])
    command = row["command"].strip()
    if "\n" in command:
        raise InputError(f"{place}: command: has several lines: write it on one")
    domain = domain_of_row(place, row, domains)
    return Pair(Task(name, domain.where, " ".join(row["task"].split())), command)


def some_of(pairs: Sequence[Pair], count: int | None, seed: int) -> list[Pair]:
    """`count` pairs of a file, or all of them, in random order; InputError where it has fewer."""
    if count is not None and count > len(pairs):
        why = f"--pairs has {len(pairs)} different pairs without tasks of the evaluation"
        raise InputError(f"--examples {count}: {why}: ask for at most that many, or leave it out")
    order = list(pairs)
    stream("pairs", seed).shuffle(order)
    return order[:count]


def held_back(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on, and those held back: at least one of each, unless the share is 0."""
    order = list(pairs)
    stream("validation", seed).shuffle(order)
    count = round(share * len(order))
    if share:
        count = min(max(count, 1), len(order) - 1)
    return order[count:], order[:count]
