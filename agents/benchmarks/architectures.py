"""The shapes of models in configs/architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from envs.messages import did_you_mean
from envs.types import InputError
from envs.yamlfile import read_yaml

ARCHITECTURES = Path(__file__).resolve().parents[2] / "configs" / "architectures"


def read_architecture(name: str) -> dict[str, Any]:
    """The `model_type` of transformers and its settings.

    Args:
        name: of a file in configs/architectures.

    Raises:
        InputError: there is none of that name.
    """
    known = sorted(path.stem for path in ARCHITECTURES.glob("*.yaml"))
    if name not in known:
        fix = did_you_mean(name, known, f"use {', '.join(known)}")
        raise InputError(f"--random-weights {name}: no such architecture: {fix}")
    return dict(read_yaml(ARCHITECTURES / f"{name}.yaml").data)
