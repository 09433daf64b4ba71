"""Candidates that an earlier run wrote, to learn from again: a bench of updates.

Writing the candidates is most of a run's time. With those of one run many rewards and updates are compared in
minutes each, on the same candidates. Only the candidates of its first cycle serve: they alone were written by
the model as it began.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from agents.studies.settings import SAME_START, difference_of, read_settings
from agents.training.config import TrainConfig
from agents.training.rollouts import candidate_in
from agents.training.saved import saved
from envs.jsonl import read_jsonl
from envs.types import Completion, InputError, Task

SEED = "{seed}"  # in --rollouts: stands for --seed
FIX = "give the folder of a run by agents.rejection_sft, agents.dpo or the like"


class Group(NamedTuple):
    """A task and what was written for it."""

    task: Task
    written: list[Completion]


def with_seed(path: str, seed: int) -> str:
    """The path of --rollouts, in which `{seed}` stands for the seed."""
    return path.replace(SEED, str(seed))


def read_candidates(folder: Path, config: TrainConfig, held_out: Collection[str]) -> list[Group]:
    """The candidates of a run's first cycle, task after task, as many as the configuration learns from.

    Args:
        folder: the run.
        config: `cycles` x `tasks` tasks are taken, the first `candidates` of each.
        held_out: texts of tasks that may not be among them.

    Raises:
        InputError: no run is there, it began with another model, it is too short, or a line is damaged.
    """
    flag = f"--rollouts {folder}"
    theirs = read_settings(folder, FIX)
    ours = saved(config)
    if different := difference_of([theirs, ours], SAME_START):
        raise InputError(f"{flag}: {different}: both runs must begin with the same model and prompts")
    path = folder / "rollouts.jsonl"
    groups: list[Group] = []
    try:
        for number, row in read_jsonl(path, log=True):
            if row.get("phase") != "before" or row.get("cycle") != 1:
                continue
            task, completion = candidate_in(row, f"{path}:{number}")
            if task.text in held_out:
                raise InputError(f"{path}:{number}: task: a held-out task: {FIX}")
            # Of a short file of tasks the same one may come again.
            if not groups or groups[-1].task != task or len(groups[-1].written) == theirs.get("candidates"):
                groups.append(Group(task, []))
            groups[-1].written.append(completion)
    except FileNotFoundError:
        raise InputError(f"{flag}: the run has no rollouts.jsonl yet: {FIX}") from None

    needed = config.cycles * config.tasks
    if len(groups) < needed:
        asked = f"--cycles {config.cycles} x --tasks {config.tasks} need {needed}"
        raise InputError(f"{flag}: its first cycle has {len(groups)} tasks, and {asked}: ask for fewer")
    found = []
    for group in groups[:needed]:
        if len(group.written) < config.candidates:
            has = f"it has {len(group.written)} candidates of a task"
            raise InputError(f"{flag}: {has}: give --candidates {len(group.written)} or fewer")
        found.append(Group(group.task, group.written[: config.candidates]))
    return found


def of_cycle(groups: Sequence[Group], cycle: int, tasks: int) -> Sequence[Group]:
    """The candidates that a cycle, counted from 1, learns from."""
    return groups[(cycle - 1) * tasks : cycle * tasks]
