"""What the files of a model or an adapter say about it, so that a wrong one is refused before torch loads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from agents.policy.names import ALIASES, SMOLLM2
from agents.training import disk
from envs.files import open_file
from envs.jsonl import from_json
from envs.messages import did_you_mean, one_line, short
from envs.types import InputError

ALLOWED = "give embedded, embedded-hard, smollm2, a folder or the name of a model on the Hugging Face hub"
ON_THE_HUB = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
# What the names of classes of transformers end with whose models see the text after a token, or write none.
NO_WRITERS = ("ForMaskedLM", "Classification", "QuestionAnswering", "ForMultipleChoice", "SentencePrediction")
WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
MOST_BYTES = 64 * 2**20  # of a file of settings
OTHER_ADAPTER = "give another adapter"


def check_model(name: str, shown: str = "") -> None:
    """Raises InputError where a model cannot be one that writes, as far as its files and its name tell.

    Args:
        name: as for --model.
        shown: what messages begin with, by default the flag and the name.
    """
    shown = shown or f"--model {name}"
    if name in ALIASES:
        return
    folder = Path(name).expanduser()
    try:
        is_folder, is_there = folder.is_dir(), folder.exists()
    except OSError as error:
        raise InputError(f"{shown}: cannot be read ({error.strerror}): {ALLOWED}") from None
    if is_folder:
        _check_folder(folder, shown)
    elif is_there:
        raise InputError(f"{shown}: is a file: {ALLOWED}")
    elif name.startswith(("~", ".")) or folder.is_absolute() or not ON_THE_HUB.fullmatch(name):
        raise InputError(f"{shown}: there is no such folder: {ALLOWED}")
    elif "/" not in name and (similar := did_you_mean(name, ALIASES, " ")).strip():
        raise InputError(f"{shown}: there is no such folder: {similar}")


def _check_folder(folder: Path, shown: str) -> None:
    if (folder / CONFIG_FILE).is_file():  # it would bring another base model along
        fix = "give its base with --model, and this folder with --adapter"
        raise InputError(f"{shown}: it holds an adapter ({CONFIG_FILE}): {fix}")
    if not (folder / "config.json").exists():
        if (folder / "config.yaml").is_file():
            fix = "give its base as --model and one of its checkpoints as --adapter"
            raise InputError(f"{shown}: is the folder of a run: {fix}")
        raise InputError(f"{shown}: has no config.json: give the folder of a model")
    config = _read_json(folder / "config.json", shown, "give another model")
    kinds = config.get("architectures") or []
    if isinstance(kinds, list) and kinds and all(str(kind).endswith(NO_WRITERS) for kind in kinds):
        why = f"is a {kinds[0]}, which does not write text token by token"
        raise InputError(f"{shown}: {why}: give a causal language model")


def check_adapter(folder: Path, model: str, shown: str = "") -> None:
    """Raises InputError where an adapter is not LoRA, is of another base model, or is damaged.

    Args:
        model: the base model, as for --model.
        shown: what messages begin with, by default the flag and the folder.
    """
    shown = shown or f"--adapter {folder}"
    config = adapter_config(folder, shown)
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise InputError(f"{shown}: is of the kind {short(kind)}: give a LoRA adapter")
    base = config.get("base_model_name_or_path")
    if isinstance(base, str) and base and _last(base) not in _names(model):
        fix = f"give that as --model, or correct base_model_name_or_path in its {CONFIG_FILE}"
        raise InputError(f"{shown}: was trained on {base}, not on {model}: {fix}")
    try:
        if (folder / "COMPLETE").exists():  # a checkpoint
            disk.verify_sums(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"{shown}: is damaged, {one_line(error)}: {OTHER_ADAPTER}") from None


def adapter_config(folder: Path, shown: str = "") -> dict[str, Any]:
    """The configuration of a saved PEFT adapter; InputError where the folder does not hold one."""
    shown = shown or f"--adapter {folder}"
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        if not (folder / name).is_file():
            raise InputError(f"{shown}: no {name} there: give the folder of a PEFT adapter")
    return _read_json(folder / CONFIG_FILE, shown, OTHER_ADAPTER)


def _read_json(path: Path, shown: str, fix: str) -> dict[str, Any]:
    try:
        with open_file(path, f"{shown}: {path.name}", MOST_BYTES) as file:
            found = from_json(file.read().decode("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no keys")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{shown}: cannot read {path.name}: {one_line(error)}: {fix}") from None
    return found


def _names(model: str) -> set[str]:
    """By which names an adapter may know its base: the folder's own, wherever it lies, or that on the hub."""
    names = {_last(model), _last(ALIASES.get(model, model))}
    if names & {"smollm2", _last(SMOLLM2)}:
        names |= {"smollm2", _last(SMOLLM2)}
    return names


def _last(model: str) -> str:
    """The last part of a path or a name on the hub, without letter case."""
    path = Path(model).expanduser()
    return (path.name if path.name not in ("", "..") else path.resolve().name).casefold()
