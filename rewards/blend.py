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
from typing import Any

import yaml

from envs.messages import did_you_mean, short
from envs.types import InputError, Reward, Score, Task
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
        root = yaml.compose(Path(name).read_text(encoding="utf-8"), yaml.SafeLoader)
    except OSError as error:
        raise InputError(
            f"--reward {name}: cannot be read ({error.strerror}): give a YAML file, or the name of a reward"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"--reward {name}: not UTF-8: save the file as UTF-8") from None
    except yaml.YAMLError as error:
        mark, problem = (
            getattr(error, "problem_mark", None),
            getattr(error, "problem", None) or "cannot be read",
        )
        raise InputError(f"{name}:{mark.line + 1 if mark else 1}: not YAML: {problem}: correct it") from None
    keys = _entries(name, root, "the file", "weights: {likelihood: 0.7, slots: 0.3}")
    for key, (line, _) in keys.items():
        if key not in ("weights", "select"):
            raise InputError(f"{name}:{line}: {key}: unknown key: {did_you_mean(key, ('weights', 'select'))}")
    if "weights" not in keys:
        raise InputError(f"{name}:1: weights: is missing: write weights: {{likelihood: 0.7, slots: 0.3}}")
    line, node = keys["weights"]
    weights = {}
    for key, (place, value) in _entries(name, node, "weights", "likelihood: 0.7").items():
        if key not in known:
            raise InputError(f"{name}:{place}: weights.{key}: no such reward: {did_you_mean(key, known)}")
        weights[key] = _weight(f"{name}:{place}: weights.{key}", value)
    if not any(weights.values()):
        raise InputError(f"{name}:{line}: weights: none is above 0: give one reward a weight")
    select = "best"
    if "select" in keys:
        place, node = keys["select"]
        select = str(node.value)
        if select not in SELECTIONS:
            raise InputError(
                f"{name}:{place}: select: must be one of {', '.join(SELECTIONS)} (found {short(select)}): correct it"
            )
    return BlendFile(weights, select)


def _entries(name: str, node: Any, place: str, example: str) -> dict[str, tuple[int, Any]]:
    """Key -> (its line, the node of its value)."""
    if not isinstance(node, yaml.MappingNode):
        line = node.start_mark.line + 1 if node is not None else 1
        raise InputError(f"{name}:{line}: {place}: must be a mapping: write {example}")
    found: dict[str, tuple[int, Any]] = {}
    for key, value in node.value:
        if str(key.value) in found:
            raise InputError(f"{name}:{key.start_mark.line + 1}: {key.value}: is there twice: drop one")
        found[str(key.value)] = (key.start_mark.line + 1, value)
    return found


def _weight(place: str, node: Any) -> float:
    wrong = InputError(f"{place}: must be a number, 0 or more (found {short(node.value)}): write 0.5, say")
    try:
        weight = float(node.value)
    except (TypeError, ValueError):
        raise wrong from None
    if not math.isfinite(weight) or weight < 0:
        raise wrong
    return weight


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
            parts |= _gates(score)
            if score.value is not None:
                parts[name] = score.value
            if text is None:
                text = score.reconstruction
        counted = [name for name in scores if self.weights[name] > 0]
        values = []
        for name in counted:
            value = scores[name].value
            if value is None:
                return Score(None, parts, text, scores[name].reason)
            values.append(self.weights[name] * value)
        for name in counted:
            if 0.0 in _gates(scores[name]).values():
                return Score(0.0, parts, text, scores[name].reason)
        total = math.fsum(self.weights[name] for name in counted)
        return Score(math.fsum(values) / total, parts, text)


def _gates(score: Score) -> dict[str, float]:
    return {part: value for part, value in score.parts.items() if part.startswith("gate/")}
