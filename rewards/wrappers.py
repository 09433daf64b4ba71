"""Rewards around other rewards: whose inverter they have, and how to choose another one."""

from __future__ import annotations

import copy
from typing import Any

from envs.types import Reward


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
