"""The settings of a run as its folder keeps them, for whoever goes on from there, wherever that is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agents.policy.names import ALIASES
from agents.training.config import TrainConfig
from envs.domain import domain_names
from envs.schema import EMBEDDED
from rewards.blend import is_blend
from rewards.learnt import OWN, PREFIX, is_learnt

# Words with a meaning of their own: they are not paths, even where a folder has the same name.
KEYWORDS: dict[str, Collection[str]] = {
    "adapter": (),
    "model": ALIASES,
    "task_source": ("templates", "model"),
    "embedder": (TrainConfig.embedder,),
    "constitution": ("commands",),
    "pairs": (),  # of the one trainer that has them, as are those below
    "rollouts": (),
    "preferences": ("judge", "truth"),
    "judge": ("base", "current", *ALIASES),
}


def saved(config: TrainConfig) -> dict[str, Any]:
    """The settings as a run keeps them: without `resume`, and with absolute paths."""
    values = {**asdict(config), "resume": None}
    for name, keywords in KEYWORDS.items():
        value = values.get(name)
        if value and value not in keywords and Path(value).exists():
            values[name] = str(Path(value).resolve())
    if is_blend(config.reward):
        values["reward"] = str(Path(config.reward).resolve())
    if is_learnt(config.reward) and config.reward != OWN:
        values["reward"] = f"{PREFIX}{Path(config.reward.removeprefix(PREFIX)).expanduser().resolve()}"
    if config.domain != "all":
        values["domain"] = ",".join(_whole_path(name) for name in domain_names(config.domain))
    return values


def _whole_path(domain: str) -> str:
    if domain in EMBEDDED:
        return domain
    return str(Path(domain).resolve())
