"""Rewards around other rewards: how to choose another inverter, and a check of the scores."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

from envs.messages import short
from envs.types import Reward, Score, Task


def inverter_of(reward: Reward) -> str | None:
    """The weights with which a reward reconstructs tasks; None for a reward that reconstructs nothing."""
    which: str | None = getattr(reward, "inverter", None)  # a reward of the user may be a plain function
    return which


def with_inverter(reward: Reward, which: str) -> Any:
    """A copy of a reward that uses another inverter; the reward itself where it has none."""
    if inverter_of(reward) is None:
        return reward
    twin: Any = copy.copy(reward)
    twin.inverter = which
    return twin


class Wrapper:
    """A reward around another one, with the inverter of that one."""

    def __init__(self, reward: Reward) -> None:
        self.reward = reward

    @property
    def inverter(self) -> str | None:
        """The inverter of the inner reward; to set it leaves the inner reward's other users alone."""
        return inverter_of(self.reward)

    @inverter.setter
    def inverter(self, which: str) -> None:
        self.reward = with_inverter(self.reward, which)


class Checked(Wrapper):
    """A reward whose faults are errors: a missing score or NaN must not pass as an abstention.

    Args:
        name: of the reward, for the message.
    """

    def __init__(self, name: str, reward: Reward) -> None:
        super().__init__(reward)
        self.name = name

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G]; ValueError as in `check_scores`."""
        scores_P_G = self.reward(tasks_P, commands_P_G, seed=seed)
        check_scores(self.name, tasks_P, commands_P_G, scores_P_G)
        return scores_P_G


def check_scores(
    name: str,
    tasks_P: Sequence[Task],
    commands_P_G: Sequence[Sequence[str]],
    scores_P_G: Sequence[Sequence[Score]],
) -> None:
    """Raises ValueError, with the reward's name, for a wrong number of scores, a NaN or an infinite score."""
    if len(scores_P_G) != len(commands_P_G):
        raise ValueError(
            f"the reward {name} returned {len(scores_P_G)} groups of scores for {len(commands_P_G)} tasks"
        )
    for task, commands, scores in zip(tasks_P, commands_P_G, scores_P_G, strict=True):
        if len(scores) != len(commands):
            raise ValueError(
                f"the reward {name} returned {len(scores)} scores for the {len(commands)} commands "
                f"of the task {short(task.text)}"
            )
        for command, score in zip(commands, scores, strict=True):
            if score.value is not None and not math.isfinite(score.value):
                raise ValueError(
                    f"the reward {name} gave {score.value} to the command {short(command)} "
                    f"of the task {short(task.text)}: return a finite number, or None to abstain"
                )
