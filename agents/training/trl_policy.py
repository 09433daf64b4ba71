"""What keeps TRL from changing our policy beyond the adapter's weights, for DPO, GRPO and RLOO."""

from __future__ import annotations

import contextlib
import logging
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from agents.policy.policy import Policy
from agents.training.config import finite

LOGGERS = ("trl", "transformers", "accelerate", "peft")
CHANGED = ("pad_token_id", "bos_token_id", "eos_token_id", "use_cache")  # of the model's configuration


@contextlib.contextmanager
def contained(policy: Policy) -> Iterator[None]:
    """Afterwards the model's configuration and adapters are as before, and so are all global random states.

    TRL makes the configuration agree with the tokenizer, switches the cache off, adds a frozen copy of
    the adapter as a reference, and seeds every random generator.
    """
    model = policy.model
    before = {name: getattr(model.config, name, None) for name in CHANGED}
    python, numpy = random.getstate(), np.random.get_state()
    checkpointed = policy.checkpointing
    try:
        with quiet(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if "ref" in model.peft_config:
            model.delete_adapter("ref")
            model.set_adapter("default")
        if policy.checkpointing and not checkpointed:
            model.activation_checkpointing_disable()
        model.generation_config = GenerationConfig()
        for name, value in before.items():
            setattr(model.config, name, value)


@contextlib.contextmanager
def unpatched(policy: Policy) -> Iterator[None]:
    """Afterwards the model has no new attributes. TRL puts its own `forward` on it, and tags."""
    parts = (policy.model, policy.model.get_base_model())
    before = [set(vars(part)) for part in parts]
    try:
        yield
    finally:
        for part, names in zip(parts, before, strict=True):
            for name in set(vars(part)) - names:
                delattr(part, name)


@contextlib.contextmanager
def precise(policy: Policy) -> Iterator[None]:
    """Afterwards the adapter has the same weights in the same precision.

    TRL makes the adapter of a 4-bit model bfloat16, in which small steps are lost.
    """
    parameters = policy.trainable()
    values = [parameter.data for parameter in parameters]
    yield
    for parameter, value in zip(parameters, values, strict=True):
        parameter.data = value


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of TRL and the libraries below it: our own lines say what the user must know."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def on_one_device(arguments: Any) -> Any:
    """TRL's arguments, for a policy on one GPU, however many the machine has."""
    arguments._n_gpu = 1
    return arguments


def logged_steps(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """TRL's log of each training step; TrainingError where a loss or a gradient is not finite."""
    steps = [row for row in history if "loss" in row]
    for number, row in enumerate(steps, 1):
        finite("loss", float(row["loss"] or 0.0), number)
        finite("gradient", float(row["grad_norm"] or 0.0), number)
    return steps
