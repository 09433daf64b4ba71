"""Several rewards as one, by weights in a YAML file: `--reward FILE.yaml`. See configs/rewards/example.yaml.

    weights: {likelihood: 0.7, slots: 0.3, majority: 0}
    select: best

`select` may be left out; it is one of threshold, best and quantile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.messages import did_you_mean, short
from envs.types import InputError, Reward, Score, Task
from envs.yamlfile import as_number, read_yaml
from rewards.wrappers import inverter_of, with_inverter

SELECTIONS = ("threshold", "best", "quantile")


@dataclass(frozen=True)
class BlendFile:
    """What the file says. A reward of weight 0 is computed and logged, and trains nothing."""

    weights: Mapping[str, float]
    select: str = "best"


def is_blend(reward: str) -> bool:
    """Whether the name of a reward is that of a file."""
    return reward.endswith((".yaml", ".yml"))


def read_blend(name: str, known: Sequence[str]) -> BlendFile:
    """Reads and checks a file.

    Args:
        known: the names of the rewards that may be blended.

    Raises:
        InputError: one line, `FILE:LINE: key: what is wrong: the fix`.
    """
    try:
        file = read_yaml(Path(name), flag="--reward")
    except FileNotFoundError:
        advice = "give the path of a YAML file, or the name of a reward"
        raise InputError(f"--reward {name}: no such file: {advice}") from None
    blend = file.data
    if not isinstance(blend, dict):
        raise file.error((), "must be a mapping: write weights: {likelihood: 0.7, slots: 0.3}")
    for key in blend:
        if key not in ("weights", "select"):
            raise file.error((key,), f"unknown key: {did_you_mean(key, ('weights', 'select'))}")
    if "weights" not in blend:
        raise file.error(("weights",), "is missing: write weights: {likelihood: 0.7, slots: 0.3}")
    if not isinstance(blend["weights"], dict):
        raise file.error(("weights",), "must be a mapping: write likelihood: 0.7")
    weights = {}
    for reward, value in blend["weights"].items():
        if reward not in known:
            raise file.error(("weights", reward), f"no such reward: {did_you_mean(reward, known)}")
        weight = as_number(value)
        if weight is None or weight < 0:
            found = f"(found {short(value)})"
            raise file.error(("weights", reward), f"must be a number, 0 or more {found}: write 0.5")
        weights[reward] = weight
    if not any(weights.values()):
        raise file.error(("weights",), "none is above 0: give one reward a weight")
    select = blend.get("select", "best")
    if select not in SELECTIONS:
        allowed = ", ".join(SELECTIONS)
        fix = did_you_mean(select, SELECTIONS, "correct it")
        raise file.error(("select",), f"must be one of {allowed} (found {short(select)}): {fix}")
    return BlendFile(weights, select)


class Blend:
    """The weighted mean of several rewards, each logged under its own name.

    It abstains where a reward with a weight above 0 abstains, and is 0 where such a reward's gate is closed.
    """

    def __init__(self, rewards: Mapping[str, Reward], weights: Mapping[str, float]) -> None:
        self.rewards, self.weights = dict(rewards), dict(weights)

    @property
    def inverter(self) -> str | None:
        """The inverter of the first reward that has one; None where none has."""
        for reward in self.rewards.values():
            which = inverter_of(reward)
            if which is not None:
                return which
        return None

    @inverter.setter
    def inverter(self, which: str) -> None:
        self.rewards = {name: with_inverter(reward, which) for name, reward in self.rewards.items()}

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G]."""
        scores_of = {}
        for name, reward in self.rewards.items():
            scores_of[name] = reward(tasks_P, commands_P_G, seed=seed)
        blended = []
        for p, commands in enumerate(commands_P_G):
            row = []
            for g in range(len(commands)):
                row.append(self._score({name: scores_P_G[p][g] for name, scores_P_G in scores_of.items()}))
            blended.append(row)
        return blended

    def _score(self, scores: Mapping[str, Score]) -> Score:
        """One candidate's score, from what each reward gave it."""
        parts: dict[str, float] = {}
        text = None
        for name, score in scores.items():
            if self.weights[name] > 0:  # a gate of a part that is only logged must not close the blend
                parts |= _gates(score)
            if score.value is not None:
                parts[name] = score.value
            if text is None:
                text = score.reconstruction
        counted = {name: score for name, score in scores.items() if self.weights[name] > 0}
        weighted = []
        for name, score in counted.items():
            if score.value is None:
                return Score(None, parts, text, score.reason)
            weighted.append(self.weights[name] * score.value)
        for score in counted.values():
            if score.closed:
                return Score(0.0, parts, text, score.reason)
        total = math.fsum(self.weights[name] for name in counted)
        return Score(math.fsum(weighted) / total, parts, text)


def _gates(score: Score) -> dict[str, float]:
    return {part: value for part, value in score.parts.items() if part.startswith("gate/")}
