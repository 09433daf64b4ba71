"""The weights of a LoRA adapter: copy and restore, on and off, save, load, hash."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from agents.policy.folders import WEIGHTS_FILE, adapter_config
from envs.messages import one_line
from envs.types import InputError

EMA_FILE = "ema.safetensors"  # next to the adapter in a checkpoint; PEFT does not look at it
Snapshot = dict[str, Tensor]


def weights(model: Any) -> Snapshot:
    """The adapter's own tensors, by name."""
    # Embeddings are never trained here; asking PEFT to find out whether they were would ask the hub.
    return get_peft_model_state_dict(model, save_embedding_layers=False)


def snapshot(model: Any) -> Snapshot:
    """A copy of the adapter's weights."""
    return {name: tensor.detach().clone() for name, tensor in weights(model).items()}


def restore(model: Any, saved: Snapshot) -> None:
    """Puts the weights of a snapshot back; ValueError if it is of another adapter."""
    if _shapes(saved) != _shapes(weights(model)):
        raise ValueError("the snapshot is of an adapter with other layers or ranks")
    set_peft_model_state_dict(model, saved)


@contextlib.contextmanager
def using(model: Any, which: Literal["on", "off"] | Snapshot) -> Iterator[None]:
    """Context with the adapter `on` (as it is), `off` (the base model), or with the weights of a snapshot."""
    if which == "on":
        yield
    elif which == "off":
        with model.disable_adapter():
            yield
    else:
        before = snapshot(model)
        try:
            restore(model, which)
            yield
        finally:
            restore(model, before)


def moved_average(average: Snapshot, now: Snapshot, decay: float) -> Snapshot:
    """decay * average + (1 - decay) * now, for each tensor."""
    return {name: tensor.lerp(now[name], 1 - decay) for name, tensor in average.items()}


def weights_hash(model: Any) -> str:
    """sha256 of the adapter's weights: equal hashes, equal weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights(model).items()):
        digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def save(model: Any, average: Snapshot | None, folder: Path) -> None:
    """Writes the adapter in PEFT's format, and its average if there is one; equal adapters as equal bytes."""
    config = model.peft_config["default"]
    if isinstance(config.target_modules, set):
        # PEFT writes a set as it comes, and its order differs from run to run.
        config.target_modules = sorted(config.target_modules)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    if average is not None:
        tensors = {name: tensor.contiguous() for name, tensor in sorted(average.items())}
        save_file(tensors, str(folder / EMA_FILE))


def load(model: Any, folder: Path) -> Snapshot | None:
    """Loads the weights of a PEFT adapter's folder into the adapter, which stays trainable.

    Returns:
        the average that lies next to them, or None.

    Raises:
        InputError: a file is missing or damaged, or the adapter has another shape or scale than the model's.
    """
    saved = read(model, folder)
    average = _read(folder, EMA_FILE, model) if (folder / EMA_FILE).is_file() else None
    restore(model, saved)
    return average


def read(model: Any, folder: Path) -> Snapshot:
    """The weights of a PEFT adapter's folder, which the model could take; InputError as in `load`."""
    saved_config = adapter_config(folder)
    own_config = model.peft_config["default"].to_dict()
    saved_weights = _read(folder, WEIGHTS_FILE, model)
    for key in ("lora_alpha", "alpha_pattern", "use_rslora"):
        saved, own = saved_config.get(key, own_config[key]), own_config[key]
        if saved != own:
            fix = "give a plain LoRA adapter"
            if key == "lora_alpha":
                fix = "use the --lora-alpha that it was trained with"
            raise InputError(f"--adapter {folder}: its {key} is {saved}, not {own}: {fix}")
    return saved_weights


def _read(folder: Path, name: str, model: Any) -> Snapshot:
    """A file of adapter weights, on the model's device; InputError if they are of another shape."""
    try:
        tensors = load_file(str(folder / name))
    except (OSError, SafetensorError) as error:
        reason = one_line(error)
        raise InputError(f"--adapter {folder}: cannot read {name}: {reason}: give another adapter") from None
    if broken := [key for key, tensor in tensors.items() if not tensor.isfinite().all()]:
        why = f"{name} holds NaN or infinity, in {broken[0]}"
        raise InputError(f"--adapter {folder}: {why}: give another adapter")
    own = weights(model)
    if _shapes(tensors) != _shapes(own):
        raise InputError(
            f"--adapter {folder}: its layers or ranks differ from those of --model, --lora-r, "
            "--lora-targets and --lora-layers: use the ones that it was trained with"
        )
    return {key: tensor.to(own[key].device) for key, tensor in tensors.items()}


def _shapes(tensors: Snapshot) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
