"""How many labels a model has consumed: pairs of a task and its reference. The number travels with weights.

A label is counted where it is used: as an example of supervised fine-tuning, trained on or held back; as a
reference behind the reward `truth`; as a hint (agents.star), or as what is preferred (agents.spin); as a shot
in a prompt. One that is used twice is counted twice. What a model saw before it came to this project is not
counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envs.jsonl import from_json
from envs.messages import one_line
from envs.types import InputError

FILE = "labels.json"  # next to an adapter's or a model's weights


def learnt_from(results: Mapping[str, Any]) -> str:
    """What a run learnt from, by its results: `label-free`, or `labelled (N)`, those before it included.

    A run is label-free where neither its reward nor its trainer can reach a label, and none was counted.
    """
    labels = all_labels(results)
    if results.get("labelled") or labels:
        return f"labelled ({labels:,})"
    return "label-free"


def all_labels(results: Mapping[str, Any]) -> int:
    """How many labels went into a run, labelled preferences and those before it included."""
    labels = int(results.get("labels", {}).get("end", 0))
    return labels + int(results.get("usage", {}).get("preferences", 0))


def write_labels(folder: Path, count: int) -> None:
    """Writes the count next to the weights; a folder without the file counts as none."""
    if count:
        (folder / FILE).write_text(json.dumps({"labels": count}) + "\n", encoding="utf-8")


def read_labels(folder: Path, default: int = 0) -> int:
    """The count next to the weights.

    Args:
        default: of a folder that says nothing.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / FILE
    try:
        count = from_json(path.read_text(encoding="utf-8"))["labels"]
    except (FileNotFoundError, NotADirectoryError):
        return default
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}): restore it or remove it") from None
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise InputError(f"{path}: labels: must be a whole number of 0 or more: restore it or remove it")
    return count
