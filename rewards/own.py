"""A reward of the user's own: `--reward package.module:factory`.

    def factory(model: LanguageModel, pool: list[Task]) -> Reward

The factory makes a reward: a callable `reward(tasks_P, commands_P_G, seed=0)` that returns a `Score` for each
command, [P][G]. It can also be a class. What a trainer must know of the reward are attributes of the factory,
all optional: `select` ("best"), `bounded` (True), `gated` (True), `labelled`, `needs_pool`, `needs_group` and
`needs_start` (False), `labels` (0); see `rewards.registry.RewardInfo`. The pool is empty unless `needs_pool`
is True. Where the reward has an attribute `inverter`, it is set to what `--inverter` says.

A file of settings, a study and the folder of a run can name a factory too. So a line on standard error says
whose code a reward is, whoever named it.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Callable
from typing import Any

from envs.messages import did_you_mean, one_line, visible
from envs.types import InputError

# No file's name: `C:\mine.yaml` and `mine:x.yaml` have characters that no Python name has.
NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")


def is_own(reward: str) -> bool:
    """Whether the name of a reward is that of a factory in the user's code."""
    return NAME.fullmatch(reward) is not None


def load_factory(reward: str) -> Callable[..., Any]:
    """The factory, from `package.module:factory`. The module is in the current folder, or installed.

    Raises:
        InputError: no such module or attribute, or a fault in the module.
    """
    match = NAME.fullmatch(reward)
    if match is None:
        raise ValueError(f"{reward} is not package.module:factory")
    module_name, attribute = match.groups()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises
        why = f"{type(error).__name__}: {one_line(error)}"
        fix = "run from the folder that holds it, or correct it"
        raise InputError(f"--reward {reward}: {module_name} cannot be imported ({why}): {fix}") from None
    factory = getattr(module, attribute, None)
    if not callable(factory):
        public = [name for name in vars(module) if not name.startswith("_")]
        fix = did_you_mean(attribute, public, "give a function or class of it")
        raise InputError(f"--reward {reward}: {module_name} has no factory {attribute}: {fix}")
    _announce(reward, str(getattr(module, "__file__", "Python itself")))
    return factory


@functools.cache
def _announce(reward: str, file: str) -> None:
    """Says once whose code it is."""
    print(visible(f"reward: {reward} is code of {file}"), file=sys.stderr, flush=True)
