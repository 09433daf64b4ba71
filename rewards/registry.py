"""The rewards by name: what is known of each, and how it is made.

To add a reward, write its file with a function that makes it from `Ingredients`, and add one line to
`REWARDS`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs.messages import did_you_mean, short
from envs.types import InputError, LanguageModel, Reward, Task
from rewards.base import Effects, Ingredients
from rewards.blend import SELECTIONS, Blend, is_blend, read_blend
from rewards.channel import channel
from rewards.controls import constant, length, random, shuffled
from rewards.gates import Gated
from rewards.hidden_slot import hidden_slot
from rewards.intrinsic import (
    base_rating,
    entropy,
    majority,
    majority_effect,
    self_certainty,
    self_judge,
    self_rating,
)
from rewards.learnt import OWN, Learnt, Scorer, is_learnt, read_card
from rewards.likelihood import choice, lift, likelihood, likelihood_min
from rewards.own import is_own, load_factory
from rewards.reconstruction import original_blend, similarity, slots
from rewards.semantic import semantic
from rewards.wrappers import Checked, with_inverter

POOL = 200  # tasks with which `similarity` finds its scale, and among which `choice` finds other tasks


@dataclass(frozen=True)
class RewardInfo:
    """What a trainer must know of a reward before it is made.

    Attributes:
        make: makes the reward, without gates.
        select: the acceptance rule that suits its scale: threshold, best or quantile.
        labelled: it uses labels when it scores: an upper bound, and shown as such.
        labels: how many it has learnt from before.
        gated: the gates stand before it, as they do before all but the controls and the truth.
        bounded: its values are in [0, 1].
        needs_pool: it compares with other tasks of the source.
        needs_group: it needs two or more candidates of a task.
        needs_start: it scores with the policy as the run began.
        executes: it executes commands, without labels.
    """

    make: Callable[[Ingredients], Reward]
    select: str = "best"
    labelled: bool = False
    gated: bool = True
    bounded: bool = True
    needs_pool: bool = False
    needs_group: bool = False
    needs_start: bool = False
    executes: bool = False
    labels: int = 0

    @property
    def from_labels(self) -> bool:
        """Whether what learns from it learns from labels."""
        return self.labelled or self.labels > 0


# What a reward of the user's own may say of itself. It is handed nothing that executes.
FACTS = [field.name for field in dataclasses.fields(RewardInfo) if field.name not in ("make", "executes")]


def _truth(given: Ingredients) -> Reward:
    if given.truth is None:
        raise InputError("--reward truth: needs labels, which are out of reach here: use likelihood")
    return given.truth()


REWARDS = {
    "similarity": RewardInfo(similarity, select="threshold", needs_pool=True),
    "original-blend": RewardInfo(original_blend, select="threshold"),
    "likelihood": RewardInfo(likelihood),
    "likelihood-min": RewardInfo(likelihood_min),
    "lift": RewardInfo(lift, bounded=False),
    "choice": RewardInfo(choice, needs_pool=True),
    "slots": RewardInfo(slots),
    "hidden-slot": RewardInfo(hidden_slot),
    "channel": RewardInfo(channel, needs_start=True),
    "self-certainty": RewardInfo(self_certainty, bounded=False),
    "entropy": RewardInfo(entropy, bounded=False),
    "majority": RewardInfo(majority, needs_group=True),
    "majority-effect": RewardInfo(majority_effect, needs_group=True, executes=True),
    "semantic": RewardInfo(semantic, needs_pool=True, needs_group=True),
    "self-judge": RewardInfo(self_judge),
    "self-rating": RewardInfo(self_rating),
    "base-rating": RewardInfo(base_rating),
    "random": RewardInfo(random, gated=False),
    "shuffled": RewardInfo(shuffled, gated=False),  # what it shuffles has gates of its own
    "length": RewardInfo(length, gated=False),
    "constant": RewardInfo(constant, select="threshold", gated=False),
    "truth": RewardInfo(_truth, select="threshold", labelled=True, gated=False),
}


def reward_info(name: str) -> RewardInfo:
    """What is known of a reward: a built-in one, a blend in a file, a learnt one, or one of the user's own.

    Raises:
        InputError: one line: no such reward, with the nearest name, or what is wrong in the file.
    """
    if is_learnt(name):
        labels = 0 if name == OWN else read_card(name)["labels"]
        return RewardInfo(functools.partial(_make_learnt, name), labels=labels)
    if is_blend(name):
        return _blend_info(name)
    if is_own(name):
        return _own_info(name)
    if name not in REWARDS:
        names = f"use one of {', '.join(REWARDS)}, a FILE.yaml, rm:FOLDER, or package.module:factory"
        raise InputError(f"--reward {name}: no such reward: {did_you_mean(name, REWARDS, names)}")
    return REWARDS[name]


def _blend_info(name: str) -> RewardInfo:
    blend = read_blend(name, list(REWARDS))
    parts = [REWARDS[part] for part in blend.weights]
    counted = [REWARDS[part] for part, weight in blend.weights.items() if weight > 0]
    return RewardInfo(
        functools.partial(_make_blend, blend.weights),
        blend.select,
        labelled=any(part.labelled for part in parts),
        gated=False,  # each part has gates of its own
        bounded=all(part.bounded for part in counted),
        needs_pool=any(part.needs_pool for part in parts),
        needs_group=any(part.needs_group for part in parts),
        needs_start=any(part.needs_start for part in parts),
        executes=any(part.executes for part in parts),
    )


def _make_blend(weights: Mapping[str, float], given: Ingredients) -> Reward:
    return Blend({part: _made(part, given) for part in weights}, weights)


def _make_learnt(name: str, given: Ingredients) -> Reward:
    if given.learnt is None:
        raise InputError(f"--reward {name}: a reward model cannot be loaded here: use likelihood")
    scorer = given.learnt(name)
    given.models[name] = scorer.parameters
    return Learnt(scorer)


def _own_info(name: str) -> RewardInfo:
    factory = load_factory(name)
    facts = {}
    for fact in FACTS:
        if hasattr(factory, fact):
            facts[fact] = getattr(factory, fact)
    info = RewardInfo(functools.partial(_make_own, name, factory), **facts)
    if info.select not in SELECTIONS:
        raise InputError(
            f"--reward {name}: its select is {short(info.select)}: use one of {', '.join(SELECTIONS)}"
        )
    if type(info.labels) is not int or info.labels < 0:
        raise InputError(
            f"--reward {name}: its labels is {short(info.labels)}: use a whole number of 0 or more"
        )
    return info


def _make_own(name: str, factory: Callable[..., Any], given: Ingredients) -> Reward:
    reward = factory(given.model, given.pool)
    if not callable(reward):
        raise InputError(f"--reward {name}: returned {short(reward)}: it must return a reward")
    return with_inverter(reward, given.inverter)


def shown(name: str) -> str:
    """A reward's name for a reader: a labelled reward says so."""
    if reward_info(name).from_labels:
        return f"{name} (labelled)"
    return name


def make_reward(
    name: str,
    model: LanguageModel,
    pool: Sequence[Task],
    *,
    inverter: str = "current",
    inverse_temperature: float = 0.3,
    embedder: str = "all-MiniLM-L6-v2",
    gates: bool = True,
    truth: Callable[[], Reward] | None = None,
    effects: Effects | None = None,
    learnt: Callable[[str], Scorer] | None = None,
    models: dict[str, int] | None = None,
) -> Reward:
    """Makes a reward.

    Args:
        name: a key of `REWARDS`, the path of a blend's YAML file, `rm:FOLDER` or `package.module:factory`.
        model: writes reconstructions and gives log-probabilities.
        pool: tasks of the source in use, for rewards with `needs_pool`; empty for others.
        inverter: weights that reconstruct the task: `current` policy, `base` model, or `ema` of the adapter.
        inverse_temperature: sampling temperature of the reconstruction; 0 is greedy.
        embedder: a sentence-transformers name or folder; the default one is installed with this package.
        gates: put the gates before the reward, if it is `gated`.
        truth: makes the labelled reward: `rewards.labelled.Truth`. Only commands can reach it.
        effects: says what commands do: `envs.verify.effects.effects_of`. Only commands can reach it.
        learnt: loads the reward model of a name `rm:FOLDER`, as `agents.policy.reward_model` does.
        models: gets the other models that are loaded, by name with their parameters.

    Raises:
        InputError: unknown name, a faulty file, a pool that is too small, or `truth` without its maker.
    """
    loaded = {} if models is None else models
    given = Ingredients(
        model, pool, inverter, inverse_temperature, embedder, gates, truth, effects, learnt, loaded
    )
    return _made(name, given)


def _made(name: str, given: Ingredients) -> Reward:
    info = reward_info(name)
    reward = info.make(given)
    if given.gates and info.gated:
        reward = Gated(reward, bounded=info.bounded)
    return Checked(name, reward)
