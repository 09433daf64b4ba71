"""A reward that was learnt from preferences: `--reward rm:FOLDER`, a reward model of `agents.reward_model`.

The folder is that of its run (the last checkpoint counts), of a checkpoint, or `reward_model` in one. What is
in there is checked here, without loading a model: the card says what the model learnt from, and holds the
sha256 sums of its files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from envs.files import open_file
from envs.jsonl import from_json
from envs.messages import one_line
from envs.prompts import forward_prompt
from envs.types import InputError, Prompt, Score, Task
from rewards.base import EMPTY, NOT_A_NUMBER, different, grouped, pairs_of

CARD = "reward_model.json"
FOLDER = "reward_model"  # in a checkpoint
PREFIX = "rm:"
OWN = "rm:itself"  # what a run of agents.reward_model calls the model that it trains
MOST_BYTES = 2**20  # of a card
FIX = "give the folder of a run of agents.reward_model"


class Scorer(Protocol):
    """A reward model: see `agents.policy.reward_model` for the implementation."""

    @property
    def parameters(self) -> int:
        """How many it has."""
        ...

    def __call__(self, prompts: Sequence[Prompt], commands: Sequence[str]) -> list[float]:
        """Log-odds that each command, after its prompt, is preferred to an average one."""
        ...


def is_learnt(reward: str) -> bool:
    """Whether the name of a reward is that of a reward model."""
    return reward.startswith(PREFIX)


def folder_of(reward: str) -> Path:
    """Where the reward model of `rm:FOLDER` is.

    Raises:
        InputError: there is none.
    """
    where = Path(reward.removeprefix(PREFIX)).expanduser()
    if reward == PREFIX or not where.is_dir():
        raise InputError(f"--reward {reward}: there is no such folder: {FIX}")
    checkpoints = sorted((where / "checkpoints").glob("cycle-[0-9]*"), reverse=True)
    for place in (where, where / FOLDER, *(checkpoint / FOLDER for checkpoint in checkpoints)):
        if (place / CARD).is_file():
            return place
    raise InputError(f"--reward {reward}: holds no reward model (no {CARD}): {FIX}")


def read_card(reward: str) -> Mapping[str, Any]:
    """What a reward model says of itself, once its files are as it says.

    Returns:
        `base`: the model below it. `labels`: those behind it. `center`: the mean score of candidates, which
        is taken from every score. `sha256`: file -> sum. And how it was made.

    Raises:
        InputError: it is missing or damaged.
    """
    folder = folder_of(reward)
    try:
        with open_file(folder / CARD, f"--reward {reward}: {CARD}", MOST_BYTES) as file:
            card = from_json(file.read().decode("utf-8"))
        _check(card)
        for name, wanted in card["sha256"].items():
            if not (folder / name).is_file():
                raise ValueError(f"{name} is missing")
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != wanted:
                raise ValueError(f"{name} does not match its sha256 sum")
    except (OSError, ValueError) as error:
        raise InputError(f"--reward {reward}: is damaged, {one_line(error)}: {FIX}") from None
    return dict(card)


def _check(card: Any) -> None:
    """Raises ValueError for a card that lacks what is needed of it."""
    if not isinstance(card, dict):
        raise ValueError(f"{CARD} holds no keys")
    kinds = {"base": str, "dtype": str, "labels": int, "center": float, "sha256": dict}
    for key, kind in kinds.items():
        if type(card.get(key)) is not kind:
            raise ValueError(f"{CARD} has no {key}")
    sums = card["sha256"]
    if (
        any(name != Path(name).name for name in sums)
        or not math.isfinite(card["center"])
        or card["labels"] < 0
    ):
        raise ValueError(f"{CARD} has wrong values")


def fingerprint(reward: str) -> str:
    """What changes if a reward model does; empty for any other reward."""
    if reward == OWN or not is_learnt(reward):
        return ""
    return hashlib.sha256((folder_of(reward) / CARD).read_bytes()).hexdigest()


class Learnt:
    """How probably a command is preferred to an average one, by a reward model.

    1 / (1 + exp(-r)), where r is the model's score minus its mean score of the candidates that it was trained
    on: what Bradley and Terry's model says of the two. In [0, 1], as the gates need it, and bounded scores
    resist over-optimisation longer (Fu et al. 2025, arXiv:2502.18770). The part `learnt` is r itself.
    """

    inverter: str | None = None

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G]; `seed` is not used."""
        pairs = pairs_of(tasks_P, commands_P_G)
        asked = different(pairs)
        values = self.scorer([forward_prompt(task) for task, _ in asked], [command for _, command in asked])
        scores = {pair: _score(value) for pair, value in zip(asked, values, strict=True)}
        return grouped([scores.get(pair, EMPTY) for pair in pairs], commands_P_G)


def _score(value: float) -> Score:
    if not math.isfinite(value):
        return NOT_A_NUMBER
    return Score(0.5 * (1 + math.tanh(value / 2)), {"learnt": value})
