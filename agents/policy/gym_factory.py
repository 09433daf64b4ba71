"""Makes the Gymnasium environments: what `gymnasium.make("envs:inversion/network-v0")` and `make_vec` call.

    env = gymnasium.make("envs:inversion/shell-v0", reward="likelihood", seed=0)
    envs = gymnasium.make_vec("envs:inversion/all-v0", num_envs=64)

Environments of one process share what is loaded: one policy for each model, one reward for each combination
of name, model, tasks and settings. It is kept until the process ends, and never trained. Nothing is loaded
for a reward object and tasks that need no model.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from envs.gym_env import InversionEnv, InversionVectorEnv
from envs.source import Source, make_source
from envs.types import Reward, Task
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
        reward: a name, as `--reward` takes it, or an object: `reward(tasks_P, commands_P_G, seed=int)`
            returns scores [P][G]. Gymnasium deep-copies an object when it makes an environment from a
            spec, as `check_env` does. For the labelled reward give the object `rewards.labelled.Truth()`.
        source: a spec as in `envs.source.make_source`, or an object with its method `tasks`.
        model: `embedded`, a Hugging Face name or a folder. It reconstructs tasks for a named reward, and
            proposes tasks for the source `model`.
        seed: of the tasks until `reset` is given one; None draws one.
        render_mode: `ansi` or None.
        gates: put the gates before a named reward.
        inverter: of a named reward: `base`, `current` or `ema`. The adapter is new here, so all three give
            the same scores; `base` is the fastest.

    Raises:
        InputError: what is wrong with the arguments, in one line.
    """
    tasks, scored = _compose(domain, reward, source, model, gates, inverter)
    return InversionEnv(tasks, scored, seed=seed, render_mode=render_mode)


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
    tasks, scored = _compose(domain, reward, source, model, gates, inverter)
    return InversionVectorEnv(tasks, scored, num_envs, seed=seed, render_mode=render_mode)


def _compose(
    domain: str, reward: str | Reward, source: str | Source, model: str, gates: bool, inverter: str
) -> tuple[Source, Reward]:
    """The source of tasks and the reward, as objects. A faulty name is refused before anything is loaded."""
    needs_pool = isinstance(reward, str) and reward_info(reward).needs_pool
    if isinstance(source, str):
        proposer = shared_policy(model) if source == "model" else None
        source = make_source(source, domain, proposer)
    if not isinstance(reward, str):
        return source, reward
    pool: list[Task] = []
    if needs_pool:
        # Not from the environment's own stream: the scale of the reward is the same for every seed.
        pool = source.tasks(POOL, 0, "pool")
    return source, _shared_reward(reward, model, tuple(pool), gates, inverter)


@functools.cache
def shared_policy(model: str, /) -> Policy:
    """The policy of all environments of this process. To train one, load your own."""
    from agents.policy.load import load_policy

    return load_policy(model)


@functools.cache
def _shared_reward(name: str, model: str, pool: tuple[Task, ...], gates: bool, inverter: str) -> Reward:
    from agents.policy.reward_model import load_reward_model

    policy = shared_policy(model)
    learnt = functools.partial(load_reward_model, beside=policy)
    return make_reward(name, policy, pool, inverter=inverter, gates=gates, learnt=learnt)
