"""The settings of GRPO and RLOO, and how they become TRL's; `--trl key=value` sets what our flags do not.

Imports TRL only when its arguments are made, so that `--help` needs neither TRL nor torch.
"""

from __future__ import annotations

import ast
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from agents.cli.values import require_counts, yaml_text
from agents.training.config import TrainConfig
from envs.messages import did_you_mean, one_line
from envs.types import InputError
from envs.yamlfile import as_number, parse_yaml

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
# What TRL looks at only in training, or never: the range of a number, or the words that it knows.
RANGES: dict[str, tuple[str, Callable[[Any], bool] | None]] = {
    "top_p": ("in (0, 1]", lambda value: 0 < value <= 1),
    "min_p": ("in [0, 1]", lambda value: 0 <= value <= 1),
    "top_k": ("0 (all tokens) or more", lambda value: value >= 0),
    "repetition_penalty": ("above 0", lambda value: value > 0),
    "epsilon_high": ("0 or more", lambda value: value >= 0),
    "delta": ("above 0", lambda value: value > 0),
    "top_entropy_quantile": ("in [0, 1]", lambda value: 0 <= value <= 1),
    "ref_model_mixup_alpha": ("in [0, 1]", lambda value: 0 <= value <= 1),
    "ref_model_sync_steps": ("1 or more", lambda value: value >= 1),
    "max_grad_norm": ("0 or more", lambda value: value >= 0),
    "vllm_gpu_memory_utilization": ("in (0, 1]", lambda value: 0 < value <= 1),
    "vllm_tensor_parallel_size": ("1 or more", lambda value: value >= 1),
}
CHOICES: dict[str, tuple[Any, ...]] = {
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "batch", "none", True, False),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_mode": ("server", "colocate"),
    "vllm_importance_sampling_mode": (
        "token_truncate",
        "token_mask",
        "sequence_truncate",
        "sequence_mask",
    ),
}
KINDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a text"}
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
        self._require("redraw", self.redraw == 0, "must be 0, since TRL writes the candidates: leave it out")
        self._require("beta", 0 <= self.beta < math.inf, "must be 0 or more")
        self._require("clip", 0 < self.clip < math.inf, "must be above 0")
        require_counts(self, "micro_batch")
        self._ours()
        self._extra()

    @property
    def step_size(self) -> int:
        """Candidates in a training step: the divisor of tasks x candidates nearest to --batch-size, by ratio.

        TRL cuts what was generated into steps of equal size.
        """
        total = self.tasks * self.candidates
        divisors = []
        for size in range(1, math.isqrt(total) + 1):
            if total % size == 0:
                divisors += [size, total // size]
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
        extra = self._extra()
        require_trl(self.algorithm)
        import torch
        import trl

        from agents.training.trl_policy import on_one_device, quiet

        config_type = getattr(trl, f"{self.algorithm}Config")
        ours = {**self._ours(), "use_cpu": not torch.cuda.is_available()}
        try:
            with quiet():
                return on_one_device(config_type(**{**DEFAULTS, **FIXED, **ours, **extra}))
        except (ValueError, TypeError, NotImplementedError, ImportError) as error:
            raise InputError(f"--trl: TRL says: {one_line(error)}") from None

    def _extra(self) -> dict[str, Any]:
        """What --trl sets, checked without TRL being loaded.

        Raises:
            InputError: TRL is not installed, or an option or its value is wrong.
        """
        kinds = options_of(self.algorithm) if self.trl else {}
        taken = dict.fromkeys([*self._ours(), "use_cpu", *FIXED, *USELESS, *DERIVED], "")
        extra = read_options(self.trl, list(kinds), {**taken, **FLAGS})
        for name, value in extra.items():
            if wrong := wrong_value(name, value, kinds[name]):
                raise InputError(f"--trl {name}={yaml_text(value)}: {wrong}")
        if extra.get("use_vllm") and find_spec("vllm") is None:
            raise InputError(
                "--trl use_vllm: vLLM is not installed: pip install 'trl[vllm]', or leave it out"
            )
        return extra

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


@functools.cache
def options_of(algorithm: str) -> dict[str, set[str]]:
    """TRL's options and the kinds of their values, by the text of its files: loading it takes ten seconds.

    Raises:
        InputError: TRL is not installed.
    """
    found: dict[str, set[str]] = {}
    for package, path in (
        ("transformers", "training_args.py"),
        ("trl", "trainer/base_config.py"),
        ("trl", f"trainer/{algorithm.lower()}_config.py"),
    ):
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise InputError(f"{algorithm} needs {package}, which is not installed: pip install '.[trl]'")
        tree = ast.parse((Path(spec.origin).parent / path).read_text(encoding="utf-8"))
        for group in tree.body:
            for line in group.body if isinstance(group, ast.ClassDef) else ():
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                    found[line.target.id] = set(ast.unparse(line.annotation).split(" | "))
    return {name: kinds for name, kinds in found.items() if not name.startswith("_")}


def wrong_value(name: str, value: Any, kinds: set[str]) -> str:
    """What is wrong with a value of an option, and what it must be; empty where nothing is."""
    if name in CHOICES:
        if value in CHOICES[name]:
            return ""
        words = [yaml_text(choice) for choice in CHOICES[name]]
        return f"must be one of {', '.join(words)}: {did_you_mean(value, words, 'correct it')}"
    if kinds <= {*KINDS, "None"}:
        number = as_number(value) is not None and not isinstance(value, str)
        fits = (
            (value is None and "None" in kinds)
            or (isinstance(value, bool) and "bool" in kinds)
            or (number and ("float" in kinds or (isinstance(value, int) and "int" in kinds)))
            or (isinstance(value, str) and "str" in kinds)
        )
        if not fits:
            return f"must be {' or '.join(text for kind, text in KINDS.items() if kind in kinds)}"
    rule, holds = RANGES.get(name, ("", None))
    if holds is not None and value is not None and not holds(value):
        return f"must be {rule}"
    return ""


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
        return parse_yaml(text, "--trl").data
    except InputError:
        fix = "put a text with special characters in quotes"
        raise InputError(f"--trl {option}: {text} is not YAML: {fix}") from None
