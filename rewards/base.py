"""What the rewards share: their ingredients, and the way from groups of candidates to pairs and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs.types import LanguageModel, Reward, Score, Task

EMPTY = Score(None, reason="empty command")
NOT_A_NUMBER = Score(None, reason="not a number")


@dataclass(frozen=True)
class Ingredients:
    """What a reward can be made from. Each maker takes what it needs.

    Attributes:
        model: writes reconstructions and gives log-probabilities.
        pool: tasks to compare with; empty for rewards that do not need them.
        inverter: weights that reconstruct the task: `current`, `base` or `ema`.
        inverse_temperature: sampling temperature of the reconstruction; 0 is greedy.
        embedder: name or folder of the sentence-embedding model.
        gates: whether rewards inside this one have gates before them.
        truth: makes the labelled reward; None where labels are out of reach.
        learnt: loads the reward model of a name `rm:FOLDER`; None where none can be loaded.
        models: other models than `model`, by name with their parameters; who loads one writes it down here.
    """

    model: LanguageModel
    pool: Sequence[Task]
    inverter: str = "current"
    inverse_temperature: float = 0.3
    embedder: str = "all-MiniLM-L6-v2"
    gates: bool = True
    truth: Callable[[], Reward] | None = None
    learnt: Callable[[str], Any] | None = None
    models: dict[str, int] = field(default_factory=dict)


def pairs_of(tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]]) -> list[tuple[Task, str]]:
    """All (task, command) pairs, group by group; ValueError for more or fewer groups than tasks."""
    pairs = []
    for task, commands in zip(tasks_P, commands_P_G, strict=True):
        pairs += [(task, command) for command in commands]
    return pairs


def grouped(scores: Sequence[Score], commands_P_G: Sequence[Sequence[str]]) -> list[list[Score]]:
    """The scores of `pairs_of`, as groups again -> [P][G]."""
    groups = []
    start = 0
    for commands in commands_P_G:
        end = start + len(commands)
        groups.append(list(scores[start:end]))
        start = end
    return groups


def different(pairs: Sequence[tuple[Task, str]]) -> list[tuple[Task, str]]:
    """Each pair once, in order, without those whose command is empty: what a model has to be asked about."""
    return [pair for pair in dict.fromkeys(pairs) if pair[1].strip()]


def mean_of_tokens(logprobs: Sequence[float]) -> float | None:
    """The mean of a text's log-probabilities; None for a text without tokens."""
    if not logprobs:
        return None
    return math.fsum(logprobs) / len(logprobs)
