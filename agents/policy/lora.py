"""Which layers of a model LoRA adapts, and the adapter with its first weights."""

from __future__ import annotations

import re
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from agents.policy.folders import adapter_config
from agents.policy.seeds import seeded
from envs.messages import one_line
from envs.types import InputError

STATE_SPACE = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
NOT_IN_STATE_SPACE = ("out_proj", "conv1d")  # their kernels take these weights as they are; PEFT refuses them
ALL_LINEAR = ("all-linear",)


@dataclass(frozen=True)
class Lora:
    """Shape of the adapter.

    `targets` are names of layers, or `("all-linear",)`: every linear layer of the text decoder. A model that
    lacks one of the names, or that has a layer with none of them, gets LoRA on all linear layers too.
    `layers` are numbers of layers, or `upper`: the upper half of them. None takes all. Gradients end at the
    lowest of them, so that half of the layers train in half the time.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    layers: tuple[int, ...] | Literal["upper"] | None = None


def with_lora(model: Any, lora: Lora, seed: int) -> Any:
    """The PEFT model with a fresh adapter; its first weights depend on the seed alone."""
    inside, outside = _modules(model)
    linear = _linear(inside)
    targets = list(lora.targets)
    if lora.targets == ALL_LINEAR or not _reach_every_layer(lora.targets, linear):
        others = {_last_part(name) for name in inside if name not in set(linear)}
        targets = _short_names(linear, others)
    if model.config.get_text_config().model_type in STATE_SPACE:
        targets = [target for target in targets if target not in NOT_IN_STATE_SPACE]
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        layers_to_transform=_layers(lora, model),
        task_type="CAUSAL_LM",
    )
    if any(_last_part(name) in targets for name in outside):
        # A vision tower has projections of the same names.
        config.exclude_modules = rf"(?!{re.escape(_decoder_name(model))}\.).*"
    with seeded("lora", seed), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT calls transformers by a name that will go
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            why = f"no LoRA on {', '.join(targets) or 'its layers'}: PEFT says: {one_line(error)}"
            raise InputError(f"--model: {why}: give another model, or other --lora-targets") from None


def _layers(lora: Lora, model: Any) -> list[int] | None:
    """The numbers of the layers with LoRA; None for all."""
    if lora.layers == "upper":
        count = model.config.get_text_config().num_hidden_layers
        return list(range(count // 2, count))
    return list(lora.layers) if lora.layers else None


def _modules(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The modules of the text decoder by name, and those outside it: the output, a vision tower."""
    decoder = _decoder_name(model)
    inside: dict[str, Any] = {}
    outside: dict[str, Any] = {}
    for name, module in model.named_modules():
        in_decoder = not decoder or name.startswith(f"{decoder}.")
        (inside if in_decoder else outside)[name] = module
    return inside, outside


def adapted(model: Any) -> str:
    """The adapted layers of a PEFT model by name, such as `12 q_proj, 12 v_proj`; and what is left out."""
    counts: Counter[str] = Counter()
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            counts[_last_part(name)] += 1
    layers = ", ".join(f"{count} {name}" for name, count in counts.items())
    if _mixtures(dict(model.named_modules())):
        layers += "; experts without LoRA"
    return layers


def saved_lora(folder: Path) -> Lora:
    """The shape of a saved adapter; InputError where the folder does not hold one."""
    saved, default = adapter_config(folder), Lora()
    targets, layers = saved.get("target_modules"), saved.get("layers_to_transform")
    return Lora(
        saved.get("r", default.r),
        saved.get("lora_alpha", default.alpha),
        saved.get("lora_dropout", default.dropout),
        tuple(targets) if isinstance(targets, list) else default.targets,
        tuple(layers) if isinstance(layers, list) else None,
    )


def _linear(modules: dict[str, Any]) -> list[str]:
    """Names of the linear layers, without those of mixtures whose experts are one parameter.

    PEFT takes a target such as `gate_proj` for a part of that parameter.
    """
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear | Conv1D)]
    mixtures = tuple(_mixtures(modules))
    in_mixtures = {_last_part(name) for name in linear if name.startswith(mixtures)}
    return [name for name in linear if _last_part(name) not in in_mixtures]


def _mixtures(modules: dict[str, Any]) -> list[str]:
    """What the names in each mixture begin with whose experts are one parameter, and so have no LoRA."""
    found = []
    for name, module in modules.items():
        if _last_part(name) == "experts" and not isinstance(module, nn.ModuleList):
            found.append(name.removesuffix("experts"))
    return found


def _decoder_name(model: Any) -> str:
    decoder = model.get_decoder()
    return next(name for name, module in model.named_modules() if module is decoder)


def _reach_every_layer(targets: tuple[str, ...], names: list[str]) -> bool:
    """Whether each target is the name of some linear layer, and each layer of the decoder has a target.

    Where attention is linear in three layers of four, `q_proj` is in the fourth alone.
    """
    by_layer: dict[str, set[str]] = defaultdict(set)
    for name in names:
        number = re.search(r"\.(\d+)\.", name)
        if number:
            by_layer[number[1]].add(_last_part(name))
    found = {_last_part(name) for name in names}
    wanted = set(targets)
    return wanted <= found and all(wanted & layer for layer in by_layer.values())


def _short_names(linear: list[str], others: set[str]) -> list[str]:
    """The last part of each name; the whole name where that is a number, or other modules end in it too."""
    names = []
    for name in linear:
        last = _last_part(name)
        names.append(name if last in others or last.isdigit() else last)
    return list(dict.fromkeys(names))


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]
