"""How good is a command, with no label. Imports `envs` only.

A reward is called as `scores_P_G = reward(tasks_P, commands_P_G, seed=0)`: P tasks, G candidates of each. A `Score` whose value is
None abstains: it is left out and counted, never replaced by a default. One object serves the environment and every trainer.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from envs.types import InputError, LanguageModel, Reward


@dataclass(frozen=True)
class RewardInfo:
    """What a trainer must know of a reward before it is built. `select`: the acceptance rule that its scale calls for."""

    select: str
    about: str


POOL = 200  # task texts by which the similarity reward finds its scale
REWARDS = {
    "similarity": RewardInfo("threshold", "decode the task from the command, compare embeddings, corrected by the nearest neighbour"),
    "seed": RewardInfo("threshold", "the original blend: 0.2 token overlap + 0.3 SequenceMatcher + 0.5 self-rated similarity"),
    "likelihood": RewardInfo("best", "exp of the mean log-probability of the task's tokens given the command"),
    "likelihood-min": RewardInfo("best", "exp of the log-probability of the task's weakest token given the command"),
    "random": RewardInfo("best", "a control: uniform noise"),
}


def check_reward(name: str) -> None:
    """Raises InputError, with the nearest name, where there is no such reward."""
    if name not in REWARDS:
        near = difflib.get_close_matches(name, REWARDS, 1)
        raise InputError(f"--reward {name}: " + (f"did you mean {near[0]}?" if near else f"use one of {', '.join(REWARDS)}"))


def make_reward(
    name: str,
    model: LanguageModel,
    pool: Sequence[str],
    *,
    inverter: str = "current",
    inverse_temperature: float = 0.3,
    embedder: str = "all-MiniLM-L6-v2",
) -> Reward:
    """Builds a reward.

    Args:
        name: a key of `REWARDS`.
        model: writes reconstructions and gives log-probabilities.
        pool: task texts of the source in use, for the neighbour correction of `similarity`.
        inverter: `current` (the model as it trains) or `base` (adapter off).
        inverse_temperature: of the reconstruction; 0 is greedy.
        embedder: a sentence-transformers name or folder; the default one is installed with this package.

    Raises:
        InputError: unknown name, or a pool too small for the correction.
    """
    check_reward(name)
    if name == "similarity":
        from rewards.inversion import Similarity
        from rewards.similarity import Embedder

        return Similarity(model, Embedder(embedder), pool, inverter=inverter, temperature=inverse_temperature)
    if name == "seed":
        from rewards.inversion import SeedBlend

        return SeedBlend(model, inverter=inverter, temperature=inverse_temperature)
    if name in ("likelihood", "likelihood-min"):
        from rewards.inversion import Likelihood

        return Likelihood(model, over="mean" if name == "likelihood" else "min", inverter=inverter)
    if name == "random":
        from rewards.controls import Random

        return Random()
    raise KeyError(name)
