"""Composes the Gymnasium environments: what `gymnasium.make("envs:inversion/network-v0")` and `make_vec` call.

    env = gymnasium.make("envs:inversion/shell-v0", reward="likelihood", seed=0)
    envs = gymnasium.make_vec("envs:inversion/all-v0", num_envs=64)

Environments made in one process share what is loaded: one policy for each model, one reward for each (name, model, pool of tasks,
settings). They never train it. It is kept until the process ends. Nothing is loaded where a reward object is given and the tasks need
no model.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from envs.gym_env import InversionEnv, InversionVectorEnv
from envs.source import Source, make_source
from envs.types import Reward, Task
from rewards.labelled import Truth
from rewards.registry import POOL, make_reward, reward_info

if TYPE_CHECKING:
    from agents.policy.policy import Policy


def make_env(
    domain: str = "all",
    *,
    reward: str | Reward = "similarity",
    source: str | Source = "templates",
    model: str = "embedded",
    seed: int | None = None,
    render_mode: str | None = None,
    gates: bool = True,
    inverter: str = "base",
) -> InversionEnv:
    """Makes a single environment.

    Args:
        domain: an embedded domain, `all`, or the path of a domain's YAML file.
        reward: a key of `rewards.registry.REWARDS`, or a reward of your own, called as `reward(tasks_P, commands_P_G, seed=int)` -> scores [P][G].
            Gymnasium deep-copies it whenever it makes an environment from the spec of this one, as `check_env` does.
        source: a spec as in `envs.source.make_source`, or an object with its `tasks` method.
        model: `embedded`, a Hugging Face name or folder: reads commands back for named rewards and proposes tasks for the source `model`.
        seed: of the tasks until `reset` is given one; None draws one.
        render_mode: `ansi` or None.
        gates: put the gates before a named reward.
        inverter: of a named reward: `base`, `current` or `ema`. The adapter is as new here, so all say the same, and the base the fastest.

    Raises:
        InputError: what is wrong with the arguments, in one line.
    """
    return InversionEnv(
        *_compose(domain, reward, source, model, gates, inverter), seed=seed, render_mode=render_mode
    )


def make_vector_env(
    num_envs: int = 1,
    domain: str = "all",
    *,
    reward: str | Reward = "similarity",
    source: str | Source = "templates",
    model: str = "embedded",
    seed: int | None = None,
    render_mode: str | None = None,
    gates: bool = True,
    inverter: str = "base",
) -> InversionVectorEnv:
    """Makes the batched environment; arguments and errors as in `make_env`."""
    return InversionVectorEnv(
        *_compose(domain, reward, source, model, gates, inverter),
        num_envs,
        seed=seed,
        render_mode=render_mode,
    )


def _compose(
    domain: str, reward: str | Reward, source: str | Source, model: str, gates: bool, inverter: str
) -> tuple[Source, Reward]:
    info = reward_info(reward) if isinstance(reward, str) else None  # before anything is loaded
    if isinstance(source, str):
        source = make_source(source, domain, shared_policy(model) if source == "model" else None)
    if not isinstance(reward, str):
        return source, reward
    # Not a part of the environment's stream, so that the scale is the same for every seed.
    pool = source.tasks(POOL, 0, "pool") if info is not None and info.needs_pool else []
    return source, _reward(reward, model, tuple(pool), gates, inverter)


@functools.cache
def shared_policy(model: str, /) -> Policy:
    """The policy that all environments of this process use: load a policy of your own to train one."""
    from agents.policy.load import load_policy

    return load_policy(model)


@functools.cache
def _reward(name: str, model: str, pool: tuple[Task, ...], gates: bool, inverter: str) -> Reward:
    return make_reward(name, shared_policy(model), pool, inverter=inverter, gates=gates, truth=Truth)
