"""The settings of GRPO and RLOO, and how they become TRL's; `--trl key=value` sets what our flags do not.

Imports TRL only when its arguments are made, so that `--help` needs neither TRL nor torch.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

import yaml

from agents.training.config import TrainConfig
from envs.messages import did_you_mean, one_line
from envs.types import InputError

# TRL's option -> the flag that sets it.
FLAGS = {
    "beta": "--beta",
    "epsilon": "--clip",
    "num_iterations": "--epochs",
    "learning_rate": "--lr",
    "temperature": "--temperature",
    "max_completion_length": "--max-new-tokens",
    "num_generations": "--candidates",
    "generation_batch_size": "--tasks and --candidates",
    "per_device_train_batch_size": "--batch-size",
    "gradient_accumulation_steps": "--micro-batch",
    "num_train_epochs": "--cycles",
    "seed": "--seed",
    "output_dir": "--output",
}
# Not open to --trl: a run is logged, evaluated and saved by `Loop`, and its optimizer is AdamW at a
# constant rate.
FIXED: dict[str, Any] = {
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "shuffle_dataset": False,
    "remove_unused_columns": False,
    "dataloader_num_workers": 0,
    "eval_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "logging_strategy": "steps",
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "disable_tqdm": True,
}
# Defaults of ours that --trl may change.
DEFAULTS: dict[str, Any] = {
    "bf16": False,  # the policy trains in the precision that it generates in
    "gradient_checkpointing": False,
    "mask_truncated_completions": True,
    "dataloader_pin_memory": False,
    "top_p": 1.0,
    "top_k": 0,
}
# Not open to --trl: without effect, because the optimizer, the model and the folder are the run's own.
USELESS = [
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "optim_args",
    "lr_scheduler_kwargs",
    "model_init_kwargs",
    "resume_from_checkpoint",
    "eval_on_start",
    "num_generations_eval",
    "load_best_model_at_end",
    "log_completions",
    "push_to_hub",
    "run_name",
    "do_train",
    "do_eval",
    "do_predict",
]
DERIVED = ["max_steps", "steps_per_generation"]  # not open to --trl: they follow from the others
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # a number for us; PyYAML takes 1e-3 for text


@dataclass(frozen=True)
class OnlineConfig(TrainConfig):
    """The settings that GRPO and RLOO share."""

    algorithm: ClassVar[str]  # as in the names of TRL's classes

    beta: float = 0.05
    """Weight of the KL to the base model; 0 leaves it out."""
    clip: float = 0.2
    """How far the ratio of new to old probability may move the loss."""
    batch_size: int = 10
    """Candidates per training step; the nearest divisor of tasks x candidates is taken."""
    micro_batch: int | None = None
    """Candidates per forward pass; gradients add up to a step. Default: the whole step. Fewer save memory."""
    epochs: int = 1
    """Passes over the candidates of a cycle."""
    lora_dropout: float = 0.0
    """Dropout of the LoRA adapter; in [0, 1). 0 by default: TRL also applies it in generation and scoring."""
    trl: tuple[str, ...] = ()
    """More options of TRL's config, key=value, separated by spaces: use_vllm=true vllm_mode=colocate."""

    def check(self) -> None:
        """Raises InputError: as in `TrainConfig.check`, or a wrong option of TRL."""
        super().check()
        self._require(
            "candidates", self.candidates > 1, "must be 2 or more: candidates of a task are compared"
        )
        self._require("beta", 0 <= self.beta < math.inf, "must be 0 or more")
        self._require("clip", 0 < self.clip < math.inf, "must be above 0")
        self._require("micro_batch", self.micro_batch is None or self.micro_batch >= 1, "must be 1 or more")
        if self.trl:
            self.arguments()

    @property
    def step_size(self) -> int:
        """Candidates in a training step: the divisor of tasks x candidates nearest to --batch-size, by ratio.

        TRL cuts what was generated into steps of equal size.
        """
        total = self.tasks * self.candidates
        divisors = [size for size in range(1, total + 1) if total % size == 0]
        return min(divisors, key=lambda size: (abs(math.log(size / self.batch_size)), size))

    @property
    def steps_in_words(self) -> str:
        """For the user: the steps of a cycle, and whether --batch-size could not be kept."""
        size, total = self.step_size, self.tasks * self.candidates
        words = f"{self.epochs * total // size} steps per cycle, {size} candidates in each"
        if size != self.batch_size:
            words += f" (nearest to --batch-size {self.batch_size} among the divisors of {total})"
        return words

    def arguments(self) -> Any:
        """TRL's configuration for this run, and with it the check of `--trl`. Needs no model.

        Raises:
            InputError: TRL is missing, or an option is wrong; one line.
        """
        require_trl(self.algorithm)
        import torch
        import trl

        from agents.training.trl_policy import on_one_device, quiet

        config_type = getattr(trl, f"{self.algorithm}Config")
        ours = {**self._ours(), "use_cpu": not torch.cuda.is_available()}
        taken = dict.fromkeys([*ours, *FIXED, *USELESS, *DERIVED], "")
        known = [field.name for field in dataclasses.fields(config_type) if field.init]
        extra = read_options(self.trl, known, {**taken, **FLAGS})
        if extra.get("use_vllm") and find_spec("vllm") is None:
            raise InputError(
                "--trl use_vllm: vLLM is not installed: pip install 'trl[vllm]', or leave it out"
            )
        try:
            with quiet():
                return on_one_device(config_type(**{**DEFAULTS, **FIXED, **ours, **extra}))
        except (ValueError, TypeError, NotImplementedError, ImportError) as error:
            raise InputError(f"--trl: TRL says: {one_line(error)}") from None

    def _ours(self) -> dict[str, Any]:
        """What our flags set, under TRL's names."""
        step = self.step_size
        micro = self.micro_batch or step
        if step % micro:
            raise InputError(f"--micro-batch {micro}: must divide the {step} candidates of a training step")
        return {
            "output_dir": str(self.output),
            "learning_rate": self.lr,
            "temperature": self.temperature,
            "max_completion_length": self.max_new_tokens,
            "num_generations": self.candidates,
            "generation_batch_size": self.tasks * self.candidates,
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": step // micro,
            "num_train_epochs": 1,  # of one cycle's tasks
            "seed": self.seed % 2**32,
            "beta": self.beta,
            "epsilon": self.clip,
            "num_iterations": self.epochs,
        }


def require_trl(algorithm: str) -> None:
    """Raises InputError, one line, where TRL cannot be imported."""
    try:
        import trl  # noqa: F401
    except ImportError as error:
        why = f"{algorithm} needs TRL, which cannot be imported ({error})"
        raise InputError(f"{why}: pip install '.[trl]'") from None


def read_options(options: Sequence[str], known: Sequence[str], taken: Mapping[str, str]) -> dict[str, Any]:
    """`key=value` each, the value in YAML (`true`, `0.5`, `1e-3`, `{a: 1}`, `"text"`) -> a mapping.

    Args:
        known: TRL's keys.
        taken: those that this command sets, with the flag that sets them, or "".

    Raises:
        InputError: a key that is unknown, set already or set twice, or a value that is not YAML.
    """
    read: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            raise InputError(f"--trl {option}: write key=value")
        if key not in known:
            fix = did_you_mean(key, known, "see its documentation")
            raise InputError(f"--trl {option}: TRL has no option {key}: {fix}")
        if key in taken:
            fix = f"use {taken[key]}" if taken[key] else "is set by this command: leave it out"
            raise InputError(f"--trl {option}: {fix}")
        if key in read:
            raise InputError(f"--trl {option}: {key} is given twice: leave one out")
        read[key] = _value(option, text)
    return read


def _value(option: str, text: str) -> Any:
    if EXPONENT.fullmatch(text):
        return float(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        fix = "put a text with special characters in quotes"
        raise InputError(f"--trl {option}: {text} is not YAML: {fix}") from None
