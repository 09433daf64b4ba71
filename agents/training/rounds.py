"""Rounds that begin again: the adapter with which a run began, whenever it is wanted."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

from agents.policy.adapter import Snapshot
from agents.policy.policy import Policy
from agents.training.loop import Loop

FIRST_FILE = "first.safetensors"  # next to the adapter in a checkpoint


def first_adapter(policy: Policy, loop: Loop) -> Snapshot:
    """The adapter with which the run began; every checkpoint keeps it for the run that is resumed."""
    if loop.restored is None:
        first = policy.snapshot()
    else:
        stored = load_file(str(loop.restored / FIRST_FILE))
        first = {name: tensor.to(policy.device) for name, tensor in stored.items()}

    def save(folder: Path) -> None:
        tensors = {name: tensor.contiguous() for name, tensor in first.items()}
        save_file(tensors, str(folder / FIRST_FILE))

    loop.save = save
    return first
