"""Principles that a model is asked to criticise, revise and prefer by: a constitution, from a YAML file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from envs.messages import did_you_mean
from envs.prompts import prefer_prompt
from envs.types import InputError, LanguageModel, Task
from envs.yamlfile import read_yaml
from rewards.intrinsic import answer_logprobs

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "constitutions"
HOW = "write `principles:` and under it lines of `name: sentence`"


class Principle(NamedTuple):
    """A rule for commands, in one sentence."""

    name: str
    text: str


def read_constitution(name: str) -> tuple[Principle, ...]:
    """The principles of a file, in its order.

    Args:
        name: of a file in configs/constitutions, or a path.

    Raises:
        InputError: the file cannot be read, or does not hold principles.
    """
    shipped = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
    path = shipped.get(name, Path(name))
    flag = "--constitution"
    try:
        file = read_yaml(path, flag=flag)
    except FileNotFoundError:
        known = f"use one of {', '.join(shipped)}, or the path of a YAML file"
        raise InputError(f"{flag} {name}: no such file: {did_you_mean(name, shipped, known)}") from None
    if not isinstance(file.data, dict) or list(file.data) != ["principles"]:
        raise file.error((), f"must have the key principles alone: {HOW}")
    found = file.data["principles"]
    if not isinstance(found, dict) or not found:
        raise file.error(("principles",), f"must be a mapping: {HOW}")
    for key, text in found.items():
        if not isinstance(text, str) or not text.strip() or "\n" in text.strip():
            raise file.error(("principles", key), f"must be a sentence on one line: {HOW}")
    return tuple(Principle(str(key), text.strip()) for key, text in found.items())


def preferences(
    model: LanguageModel, pairs: Sequence[tuple[Task, str, str]], principles: Sequence[Principle], judge: str
) -> list[float]:
    """How probable it is that the first of two commands is better, over both orders and all principles.

    NaN where the judge's probabilities are not numbers.
    """
    prompts = []
    for task, first, second in pairs:
        for principle in principles:
            prompts.append(prefer_prompt(task, first, second, principle.text))
            prompts.append(prefer_prompt(task, second, first, principle.text))
    with model.inverter(judge):
        rows = answer_logprobs(model, prompts, ("A", "B"))
    chances = []
    for row, (log_a, log_b) in enumerate(rows):
        of_first = log_a - log_b if row % 2 == 0 else log_b - log_a
        chances.append(1 / (1 + math.exp(-max(of_first, -700.0))))  # NaN stays NaN
    each = 2 * len(principles)
    return [math.fsum(chances[start : start + each]) / each for start in range(0, len(chances), each)]
