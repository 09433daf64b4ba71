"""Preferences between two commands of a task: read from a file, or made of what a policy wrote."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.domain import Domain
from envs.jsonl import read_jsonl
from envs.source import check_length, domain_of_row, plain_text
from envs.streams import stream
from envs.types import InputError, Score, Task

if TYPE_CHECKING:
    from agents.training.rollouts import Batch

LINE = 'write {"prompt": "a task", "chosen": "a command", "rejected": "a command"} on one line'
Pair = tuple[Task, str, str]


@dataclass(frozen=True)
class Preference:
    """Of two commands of a task, how probable it is that the first is better."""

    task: Task
    first: str
    second: str
    chance: float = 1.0


def read_preferences(
    path: Path, domains: Sequence[Domain], exclude: Collection[str], seed: int
) -> list[Preference]:
    """The preferences of a JSONL file, each once, in random order.

    `prompt` is the task, and `chosen` is better than `rejected`.

    Args:
        domains: of which a row may name one; with a single domain it need not.
        exclude: texts of tasks that must not be trained on, such as those of the evaluation.

    Raises:
        InputError: the file cannot be read, a line is faulty, or nothing is left.
    """
    flag = "--preferences"
    excluded = set(map(plain_text, exclude))
    found: dict[tuple[str, ...], Preference] = {}
    try:
        for number, row in read_jsonl(path, flag, LINE):
            place = f"{path}:{number}"
            texts = []
            for key in ("prompt", "chosen", "rejected"):
                text = row.get(key)
                if not isinstance(text, str) or not text.strip():
                    raise InputError(f"{place}: {key}: is missing or not a text: {LINE}")
                check_length(f"{place}: {key}", text)
                if key != "prompt" and "\n" in text.strip():
                    raise InputError(f"{place}: {key}: has several lines: write it on one")
                texts.append(" ".join(text.split()) if key == "prompt" else text.strip())
            prompt, chosen, rejected = texts
            if chosen == rejected:
                raise InputError(f"{place}: chosen and rejected are the same: leave the line out")
            where = domain_of_row(place, row, domains).where
            if plain_text(prompt) not in excluded:
                task = Task(f"{path.name}/{number}", where, prompt)
                found.setdefault((where, *texts), Preference(task, chosen, rejected))
    except FileNotFoundError:
        fix = "give judge, truth, or the path of a JSONL file"
        raise InputError(f"{flag} {path}: no such file: {fix}") from None
    if not found:
        raise InputError(f"{flag} {path}: has no preference without tasks of the evaluation: give more")
    preferences = list(found.values())
    stream("preferences", seed).shuffle(preferences)
    return preferences


def pairs_to_compare(batch: Batch) -> list[Pair]:
    """All pairs of different commands of each task; a truncated one has no end to judge."""
    found: list[Pair] = []
    for group in batch.groups:
        commands = [rollout.command for rollout in group if rollout.command and not rollout.truncated]
        for first, second in itertools.combinations(dict.fromkeys(commands), 2):
            found.append((group[0].task, first, second))
    return found


def by_chance(pairs: Sequence[Pair], chances: Sequence[float]) -> list[Preference]:
    """The preferences of a judge, the better command first; none where it finds both equally good."""
    found = []
    for (task, first, second), chance in zip(pairs, chances, strict=True):
        if chance > 0.5:
            found.append(Preference(task, first, second, chance))
        elif chance < 0.5:
            found.append(Preference(task, second, first, 1 - chance))
    return found


def by_score(pairs: Sequence[Pair], scores_P_2: Sequence[Sequence[Score]]) -> list[Preference]:
    """The preferences that two scores of each pair say; none where they are equal or one is missing."""
    found = []
    for (task, first, second), (one, other) in zip(pairs, scores_P_2, strict=True):
        if one.value is None or other.value is None or one.value == other.value:
            continue
        better = (first, second) if one.value > other.value else (second, first)
        found.append(Preference(task, *better))
    return found


def rows_of(preferences: Iterable[Preference], cycle: int) -> list[dict[str, Any]]:
    """Lines for a run's preferences.jsonl. `read_preferences` takes that file too."""
    rows = []
    for one in preferences:
        task = {"task_id": one.task.id, "domain": one.task.domain, "tool": one.task.tool}
        words = {"prompt": one.task.text, "chosen": one.first, "rejected": one.second}
        rows.append({"cycle": cycle, **task, **words, "chance": one.chance})
    return rows


def learnt_before(path: Path) -> list[Preference]:
    """The preferences in a run's preferences.jsonl, as it wrote them; none without the file.

    Raises:
        InputError: a line is damaged.
    """
    if not path.is_file():
        return []
    found = []
    for number, row in read_jsonl(path, fix="restore the file"):
        try:
            task = Task(row["task_id"], row["domain"], row["prompt"], row["tool"])
            found.append(Preference(task, row["chosen"], row["rejected"], float(row["chance"])))
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{path}:{number}: the line is damaged: restore it") from None
    return found
