"""Headroom: how much better the choice of a reward is than the greedy command, and so the most that a run can
gain by learning from what the reward chooses.

The candidates of a task are its greedy command and N samples. The same command is one candidate, white space
apart. Commands that have the same effect stay apart: verification compares a command with the reference, not
with other commands, so two wrong ones cannot be told to be wrong alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from agents.evaluation.answers import Answer
from agents.evaluation.bootstrap import ROUNDS, Array, resamples
from agents.evaluation.metrics import auc, correctness, mean
from agents.evaluation.paired import difference
from agents.evaluation.statistics import mean_estimate
from envs.streams import seed_of
from envs.types import Reward, Score

# Choices that no reward makes. Names of rewards have no space.
ANY, VOTES, BLIND = "any right", "most votes", "random pick"


@dataclass
class Candidate:
    """A command that was written for a task.

    Attributes:
        right: 1.0 or 0.0; None where it could not be executed.
        scores: by each reward, from the first time it was written; None where the reward abstained.
        votes: how often it was written; 0 for an answer without a command.
    """

    right: float | None
    scores: Mapping[str, float | None]
    votes: int = 0


def scored(answers: Sequence[Answer], rewards: Mapping[str, Reward]) -> list[Answer]:
    """The answers with scores of all commands by each reward; those of the first are the samples' own."""
    tasks = [answer.case.task for answer in answers]
    commands = [[judged.command for judged in answer.commands] for answer in answers]
    by_reward: dict[str, list[list[Score]]] = {}
    for name, reward in rewards.items():
        by_reward[name] = reward(tasks, commands, seed=seed_of("evaluation reward"))
    first = next(iter(rewards))
    found = []
    for place, answer in enumerate(answers):
        own = {name: tuple(rows[place]) for name, rows in by_reward.items()}
        of_samples = zip(answer.samples, own[first][1:], strict=True)
        samples = tuple(replace(judged, score=score) for judged, score in of_samples)
        found.append(replace(answer, samples=samples, scores=own))
    return found


def candidates(answer: Answer, n: int) -> list[Candidate]:
    """The different commands among the greedy one and the first `n` samples, the greedy one first."""
    found: dict[str, Candidate] = {}
    for place, judged in enumerate(answer.commands[: n + 1]):
        key = " ".join(judged.command.split())
        if key not in found:
            scores = {name: row[place].value for name, row in answer.scores.items()}
            found[key] = Candidate(correctness(judged.verdict.status), scores)
        if key:
            found[key].votes += 1
    return list(found.values())


def choices(rows: Sequence[Candidate]) -> dict[str, float | None]:
    """Whether each choice among the candidates of a task is right; the chance of that for a random pick.

    Candidates that could not be executed are left out; all are None where the greedy one, the first, is among
    them. Of equals the first is taken, so the greedy command where it is one. It stands too where a reward
    abstains on all candidates.
    """
    names = list(rows[0].scores)
    if rows[0].right is None:
        return dict.fromkeys((ANY, *names, VOTES, BLIND))
    known = [row for row in rows if row.right is not None]
    rights = [float(row.right or 0.0) for row in known]
    found: dict[str, float | None] = {ANY: max(rights)}
    for name in names:
        values = []
        for row in known:
            value = row.scores[name]
            values.append(-math.inf if value is None else value)
        found[name] = rights[values.index(max(values))]
    votes = [row.votes for row in known]
    found[VOTES] = rights[votes.index(max(votes))]
    found[BLIND] = mean(rights)
    return found


def sizes(n: int) -> list[int]:
    """Numbers of samples for which headroom is shown: 2, 4, 8 and so on, and `n`."""
    found = []
    size = 2
    while size < n:
        found.append(size)
        size *= 2
    return [*found, n]


def headroom(answers: Sequence[Answer], n: int) -> dict[str, Any]:
    """Plain values for a report: accuracy of each choice, that minus greedy and minus most votes, paired by
    task; AUC of each reward within a task, over all its samples.

    Args:
        answers: with `scores`.
        n: samples of each task.
    """
    picks = resamples(len(answers), ROUNDS)
    greedy_P = np.array([_or_nan(correctness(answer.greedy.verdict.status)) for answer in answers])
    found = []
    for size in sizes(n):
        rows_P = [candidates(answer, size) for answer in answers]
        chosen_P = [choices(rows) for rows in rows_P]
        columns: dict[str, Array] = {}
        for name in chosen_P[0]:
            columns[name] = np.array([_or_nan(chosen[name]) for chosen in chosen_P])
        by_choice = {}
        for name, column_P in columns.items():
            by_choice[name] = {
                "accuracy": asdict(mean_estimate(column_P, picks)),
                "headroom": _compared(greedy_P, column_P),
                "over_votes": _compared(columns[VOTES], column_P),
            }
        different = mean([float(len(rows)) for rows in rows_P])
        found.append({"samples": size, "different": different, "choices": by_choice})
    within = {}
    for name in answers[0].scores:
        within[name] = asdict(
            mean_estimate(np.array([_auc_within(answer, name) for answer in answers]), picks)
        )
    return {"greedy": asdict(mean_estimate(greedy_P, picks)), "auc_within": within, "sizes": found}


def _compared(first_P: Array, second_P: Array) -> dict[str, Any]:
    change = difference(first_P, second_P)
    return {**asdict(change), "verdict": change.verdict}


def _auc_within(answer: Answer, name: str) -> float:
    """AUC of a reward among the samples of a task; NaN without a right and a wrong one that it scored."""
    rights, values = [], []
    for sample, score in zip(answer.samples, answer.scores[name][1:], strict=True):
        right = correctness(sample.verdict.status)
        if right is not None and score.value is not None:
            rights.append(right)
            values.append(score.value)
    return _or_nan(auc(rights, values))


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
