"""The settings of a run, from its config.yaml, and which of them must be equal to compare two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from envs.messages import short
from envs.types import InputError
from envs.yamlfile import read_yaml
from rewards.registry import reward_info

# The held-out accuracy of two runs can be compared only on the same tasks and with the same longest command.
SAME_TASKS = ("domain", "eval_tasks", "max_new_tokens")
# Their sampled accuracy only if sampled alike, and their curves only on the same subset.
SAME_EVALUATION = (*SAME_TASKS, "eval_subset", "eval_samples", "temperature")
# What the candidates of a run depend on, its seed and its numbers of tasks and candidates aside.
SAME_START = (
    *("model", "adapter", "domain", "task_source", "shots", "prefill", "chat_template_kwargs"),
    *("max_new_tokens", "temperature"),
)
# Scores of two rewards, inverters or embedders are on different scales.
SAME_SCALE = ("reward", "gates", "inverter", "inverse_temperature", "embedder")
NUMBERS = {"cycles": int, "tasks": int, "candidates": int, "margin": int | float}
FIX = "restore it, or leave the run out"


def read_settings(folder: Path, fix: str = FIX) -> dict[str, Any]:
    """A run's config.yaml.

    Args:
        fix: what the user can do about a file that is no run's.

    Raises:
        InputError: there is none, it is not valid YAML, or it does not say which trainer made the run.
    """
    path = folder / "config.yaml"
    try:
        settings = read_yaml(path).data
    except FileNotFoundError:
        message = f"{folder}: no run is there (it has no config.yaml): give the folder of a run"
        raise InputError(message) from None
    if not isinstance(settings, dict):
        raise InputError(f"{path}: cannot be read (it holds no settings): {fix}")
    if not isinstance(settings.get("agent"), str):
        raise InputError(f"{path}: cannot be read (it has no key `agent`, the trainer of the run): {fix}")
    for key, kind in NUMBERS.items():
        value = settings.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise InputError(f"{path}: cannot be read ({key}: {short(value)}): {fix}")
    return settings


def is_labelled(reward: str) -> bool:
    """Whether a reward uses labels, or has learnt from some; False for one whose file is gone."""
    try:
        return reward_info(reward).from_labels
    except InputError:
        return False


def difference_of(settings: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> str:
    """What differs between two or more runs' settings, as `key a and b`; empty where nothing does."""
    for key in keys:
        values = list(dict.fromkeys(str(row.get(key)) for row in settings))
        if len(values) > 1:
            return f"{key} {' and '.join(values)}"
    return ""
