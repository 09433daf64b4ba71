"""Values of settings: a word or a YAML value as its field has it, files of settings, a model's own file."""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

import yaml

from envs.messages import did_you_mean
from envs.types import InputError
from envs.yamlfile import as_number, read_yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2"
MODEL_FILES = {
    "embedded": "embedded.yaml",
    "embedded-hard": "embedded.yaml",
    "mistral-7b": "mistral-7b.yaml",
    MISTRAL: "mistral-7b.yaml",
}

MOST = 1_000_000  # of what a flag counts


def convert(value: Any, hint: Any, text: bool = False) -> Any:
    """A value as its field's type has it.

    Args:
        text: the value is a word of the command line rather than a YAML value.

    Raises:
        ValueError: it is not of that type; the message says what it must be.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        is_none = value is None or (text and value == "None")
        if is_none and type(None) in arguments:
            return None
        [inner] = [argument for argument in arguments if argument is not type(None)][:1]
        return convert(value, inner, text)
    if origin is Literal:
        if value not in arguments:
            allowed = ", ".join(map(str, arguments))
            raise ValueError(f"must be one of {allowed}: {did_you_mean(value, arguments, 'see --help')}")
        return value
    if origin in (tuple, list):
        if isinstance(value, list):
            return origin(convert(item, arguments[0]) for item in value)
        if text:
            return value
        raise ValueError("must be a list: [a, b]")
    if hint is float:
        number = as_number(value)
        if number is None:
            raise ValueError("must be a number")
        return number
    if hint is int and not _is_whole(value, text):
        raise ValueError("must be a whole number")
    if hint is bool and not text and not isinstance(value, bool):
        raise ValueError("must be true or false")
    if hint is str and not isinstance(value, str):
        raise ValueError("must be text: put it in quotes")
    if hint is str and "\0" in value:  # no path can have one
        raise ValueError("must have no null character: remove it")
    return value


def _is_whole(value: Any, text: bool) -> bool:
    if text:
        return re.fullmatch(r"[+-]?\d{1,100}", value) is not None
    return isinstance(value, int) and not isinstance(value, bool)


def read_settings(
    path: Path,
    hints: Mapping[str, Any],
    forbidden: Sequence[str] = (),
    shown: str = "",
    skip_unknown: bool = False,
) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings in a YAML file -> (values, where each stands: `FILE:LINE`).

    Args:
        forbidden: keys that only make sense as flags.
        shown: the file's name for messages.
        skip_unknown: leave out the keys that this command has no field for.
    """
    try:
        file = read_yaml(path, shown, flag="--config")
    except FileNotFoundError:
        raise InputError(f"--config {shown or path}: no such file: give the path of a YAML file") from None
    if file.data is None:
        return {}, {}
    if not isinstance(file.data, dict):
        raise file.error((), "must hold settings, one `key: value` per line")
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key, value in file.data.items():
        if key in forbidden:
            raise file.error((key,), f"cannot be set in a file: give it as --{key}")
        if key not in hints:
            if skip_unknown:
                continue
            allowed = [name for name in hints if name not in forbidden]
            raise file.error((key,), f"unknown key: {did_you_mean(key, allowed, 'see --help')}")
        try:
            values[key] = convert(value, hints[key])
        except ValueError as error:
            raise file.error((key,), f"{yaml_text(value)}: {error}") from None
        origins[key] = f"{file.name}:{file.line((key,))}"
    return values, origins


def require(config: Any, name: str, holds: bool, rule: str) -> None:
    """Raises InputError unless a rule holds: the flag of a configuration's field, its value, and the rule."""
    if holds:
        return
    value = getattr(config, name)
    shown = "''" if value == "" else value
    raise InputError(f"--{name.replace('_', '-')} {shown}: {rule}")


def require_counts(config: Any, *names: str, least: int = 1, most: int = MOST) -> None:
    """Raises InputError unless each of these fields is None or a count that can be worked through."""
    for name in names:
        value = getattr(config, name)
        require(config, name, value is None or value >= least, f"must be {least} or more")
        require(config, name, value is None or value <= most, f"must be {most:,} or less")


def require_sampling(config: Any) -> None:
    """Raises InputError unless a model can be asked as `temperature`, `inverse_temperature` and `shots` say.

    None, which stands for another command's value, is left alone.
    """
    heat, inverse_heat = config.temperature, config.inverse_temperature
    require(config, "temperature", heat is None or 0 < heat < math.inf, "must be above 0")
    greedy_or_sampled = inverse_heat is None or 0 <= inverse_heat < math.inf
    require(config, "inverse_temperature", greedy_or_sampled, "must be 0 (greedy) or more")
    for name, value in (("temperature", heat), ("inverse_temperature", inverse_heat)):
        # Beyond these, logits divided by it are no numbers any more.
        require(config, name, not value or 1e-3 <= value <= 1e3, "must be from 0.001 to 1,000")
    require_counts(config, "shots", least=0, most=1000)
    require_counts(config, "max_new_tokens", most=100_000)
    require_counts(config, "threads", most=4096)


def yaml_text(value: Any) -> str:
    """A value as YAML writes it, on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.removesuffix("\n...\n").strip()


def model_defaults(model: str, hints: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The settings that suit a model -> (values, the file's name; empty for a model that has none).

    `model` is among the values: a file may give the full name of a short one. Fields that the command lacks
    are left out. A model made by `agents.pretrain` has the settings of the embedded one.
    """
    file = MODEL_FILES.get(model) or (
        MODEL_FILES["embedded"] if (Path(model) / "pretrain.json").is_file() else ""
    )
    if not file:
        return {"model": model}, ""
    name = f"configs/{file}"
    values, _ = read_settings(CONFIGS / file, hints, shown=name, skip_unknown=True)
    return {"model": model, **values}, name
