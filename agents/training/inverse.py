"""The other direction: descriptions of commands are written, and scored by how likely they make the command.

It mirrors the forward direction with the reward `likelihood`. Round-trip reinforcement learning (RTRL: Kong
et al. 2025, arXiv:2510.01527) alternates between the two, with this score in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from agents.training.rollouts import Rollout
from envs.answers import first_line
from envs.prompts import forward_prompt, inverse_prompt
from envs.types import Completion, Score
from rewards.base import NOT_A_NUMBER, mean_of_tokens

if TYPE_CHECKING:
    from agents.policy.policy import Policy

LONGEST = 64  # tokens of a description, as of a reconstruction


def described(
    policy: Policy, chosen: Sequence[Rollout], *, candidates: int, temperature: float, seed: int
) -> list[list[Rollout]]:
    """Descriptions of each different command among these, scored -> [P][G].

    A description stands in the place of its command's task, whose text the model is not shown. The score is
    exp of the mean log-probability of the command's tokens, given the description, under the policy as it is.
    It abstains where nothing could be learnt: see `fault`.
    """
    by_command: dict[tuple[str, str], Rollout] = {}
    for rollout in chosen:
        by_command.setdefault((rollout.task.domain, rollout.command), rollout)
    commands = list(by_command.values())
    prompts = [inverse_prompt(rollout.task, rollout.command) for rollout in commands]
    written_P_G = policy.generate(
        prompts, candidates, temperature=temperature, max_new_tokens=LONGEST, seed=seed
    )
    groups = []
    for rollout, row in zip(commands, written_P_G, strict=True):
        group = []
        for completion in row:
            task = replace(rollout.task, text=" ".join(first_line(completion.text).split()))
            score = Score(None, reason=fault(completion, task.text, rollout.command))
            group.append(Rollout(task, Completion(rollout.command), score))
        groups.append(group)
    asked = [rollout for group in groups for rollout in group if not rollout.score.reason]
    values = policy.logprobs(
        [forward_prompt(rollout.task) for rollout in asked], [rollout.command for rollout in asked]
    )
    scores = iter(map(score_of, values))
    return [
        [rollout if rollout.score.reason else replace(rollout, score=next(scores)) for rollout in group]
        for group in groups
    ]


def fault(written: Completion, description: str, command: str) -> str:
    """Why a description is not to be learnt from; empty where it may be.

    A description that holds the command makes it likely, and says nothing.
    """
    if not description:
        return "empty description"
    if written.truncated:
        return "truncated description"
    if " ".join(command.split()).casefold() in description.casefold():
        return "holds the command"
    return ""


def score_of(logprobs: Sequence[float]) -> Score:
    """From the log-probabilities of a command's tokens."""
    mean = mean_of_tokens(logprobs)
    if mean is None or math.isnan(mean):
        return NOT_A_NUMBER
    return Score(math.exp(mean))
