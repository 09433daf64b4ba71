"""The settings that every trainer has. Its own `Config` derives from `TrainConfig` and adds more."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agents.cli.files import check_output
from agents.cli.values import require, require_counts, require_sampling


class TrainingError(RuntimeError):
    """Training failed and must not be saved; the last checkpoint is intact. Commands exit with code 1."""


def finite(what: str, value: float, step: int) -> float:
    """The value; TrainingError if it is NaN or infinite."""
    if not math.isfinite(value):
        advice = "lower --lr; the last checkpoint is intact"
        raise TrainingError(f"the {what} is {value} at step {step}: {advice}")
    return value


@dataclass(frozen=True)
class TrainConfig:
    """Improves a model on its own commands: it writes, reconstructs, scores and learns, cycle after cycle."""

    cycles: int = 10
    """Cycles of writing, scoring and training."""
    tasks: int = 50
    """Tasks per cycle."""
    candidates: int = 3
    """Commands written for each task."""
    redraw: int = 0
    """How often tasks whose candidates all score alike are replaced by new ones; 0: never."""
    temperature: float = 0.7
    """Sampling temperature of the commands."""
    model: str | None = None
    """embedded, embedded-hard, smollm2, mistral-7b, or a Hugging Face name or folder. Default: embedded."""
    adapter: str | None = None
    """Start from the PEFT adapter in this folder."""
    load_in_4bit: bool = False
    """Load the base model in 4 bits (CUDA only)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the base model. auto: the faster one on a CPU, as measured; 16 bits on a GPU."""
    threads: int | None = None
    """Threads of the CPU. Default: one for a small model, else all of them where they are faster."""
    shots: int = 0
    """Labelled examples of each domain before every prompt: its own, else pairs that no run trains on."""
    prefill: str | None = None
    """How every command's answer begins, such as ```bash and a line feed. Default: as the domain says."""
    chat_template_kwargs: str | None = None
    """Variables of the chat template, as JSON. Default: what switches thinking off."""
    plan: bool = False
    """Print how much memory the run will take and how much it will write, and end: no weight is loaded."""
    force: bool = False
    """Start although the first answers are mostly invalid or all the same."""
    output: str | None = None
    """Folder for runs. Default: runs/<agent>."""
    name: str | None = None
    """Name of the run's folder. Default: <domain>-<reward>-s<seed>-<id>."""
    lr: float = 2e-4
    """Learning rate; 1e-3 with the embedded model."""
    batch_size: int = 4
    """Examples per training step."""
    epochs: int = 1
    """Passes over the examples of a cycle."""
    lora_r: int = 16
    """Rank of the LoRA adapter."""
    lora_targets: Literal["attention", "all-linear"] = "attention"
    """What of a layer has LoRA: the projections of attention (all, where it has none), or all linear ones."""
    lora_layers: Literal["all", "upper"] = "all"
    """Layers with LoRA: all, or the upper half, which trains in about half the time."""
    lora_alpha: int = 32
    """Scale of the LoRA adapter: its output is multiplied by alpha / r."""
    lora_dropout: float = 0.05
    """Dropout of the LoRA adapter; in [0, 1)."""
    max_new_tokens: int = 64
    """Longest command, in tokens; 48 with the embedded model."""
    domain: str = "all"
    """network, shell, sql, all of them (all), or paths of YAML files; separate several by commas."""
    reward: str = "similarity"
    """Name, FILE.yaml of a blend, rm:FOLDER, or package.module:factory. truth is labels (docs/REWARDS.md)."""
    gates: bool = True
    """Score 0 for output that is not a valid command or that copies the task text into the command."""
    inverter: Literal["current", "base", "ema"] = "current"
    """Weights that reconstruct the task: current policy, base model (adapter off), or EMA of the adapter."""
    inverse_temperature: float = 0.3
    """Sampling temperature for reconstruction; 0 = greedy (the embedded model's default)."""
    embedder: str = "all-MiniLM-L6-v2"
    """Sentence-embedding model of the rewards similarity and semantic, which compare reconstructions."""
    task_source: str = "templates"
    """Training tasks: templates (the domain's), model (its own), FILE.jsonl, or hf:DATASET:COLUMN[:SPLIT]."""
    keep: Literal["last", "best"] = "last"
    """Adapter to end with: the last cycle's, or the best by a score without labels (docs/EVALUATION.md)."""
    eval_tasks: int = 300
    """Held-out tasks in all, over all domains, evaluated before the first cycle and after the last."""
    eval_subset: int = 60
    """How many of them are evaluated after each cycle, greedily; a quarter is sampled and scored as well."""
    eval_samples: int = 4
    """Commands sampled for each held-out task: the K of pass@K."""
    seed: int = 0
    """Seed of tasks, samples and training. The held-out tasks are the same for every seed."""
    resume: str | None = None
    """Resume the run in this folder. Without a value: the run of --output and --name, else the newest one."""
    config: str | None = None
    """YAML file of settings, named like these flags with underscores. Flags override it."""

    @property
    def supervised(self) -> bool:
        """Whether the trainer learns from references, whatever the reward is."""
        return False

    @property
    def reward_watches(self) -> bool:
        """Whether nothing is learnt from the reward: it only shows how the run goes."""
        return False

    def check(self) -> None:
        """Raises InputError with flag and fix: a value out of range, an unknown reward, a faulty domain."""
        from agents.policy.chat import read_options
        from agents.policy.folders import check_adapter, check_model
        from envs.source import check_source
        from rewards.registry import reward_info

        require_counts(self, "cycles", "tasks", "candidates", "batch_size", "epochs", "lora_r", "lora_alpha")
        require_counts(self, "eval_tasks", "eval_subset", "eval_samples")
        require_counts(self, "redraw", least=0)
        comparable = self.redraw == 0 or self.candidates > 1
        self._require("redraw", comparable, "compares the candidates of a task: give --candidates 2 or more")
        require_sampling(self)
        self._require("lr", 0 < self.lr < math.inf, "must be above 0")
        self._require("lr", 1e-12 <= self.lr <= 10, "must be from 1e-12 to 10: 2e-4 is the default")
        self._require("lora_dropout", 0 <= self.lora_dropout < 1, "must be in [0, 1): 0.05 is the default")
        require_counts(self, "seed", least=0, most=2**63 - 1)
        read_options(self.chat_template_kwargs)
        for name in ("model", "adapter", "output", "domain", "reward", "embedder", "task_source"):
            filled = getattr(self, name) != ""
            self._require(name, filled, "must not be empty: leave the flag out for its default")
        plain = self.name is None or (self.name not in ("", ".", "..") and "/" not in self.name)
        self._require("name", plain, "must be the name of a folder, without its path: use --output for that")

        short = len(os.fsencode(self.name or "")) <= 255
        self._require("name", short, "must have at most 255 bytes: choose a shorter one")

        if reward_info(self.reward).needs_group:
            compares = f"since the reward {self.reward} compares candidates"
            self._require("candidates", self.candidates > 1, f"must be 2 or more, {compares}")
            self._require("eval_samples", self.eval_samples > 1, f"must be 2 or more, {compares}")
            single = f"must be last, since the reward {self.reward} cannot score a single command"
            self._require("keep", self.keep == "last", single)
        check_model(self.model or "embedded")
        check_source(self.task_source, self.domain)
        if self.resume is None:
            if self.adapter:  # a run that is resumed starts from its checkpoint
                check_adapter(Path(self.adapter).expanduser(), self.model or "embedded")
            check_output(self.output, self.name)

    @property
    def held_out(self) -> tuple[str, int, int, int, float, int]:
        """What a held-out evaluation is made with, as `agents.evaluation.heldout.HeldOut` takes it."""
        sizes = (self.eval_tasks, self.eval_subset, self.eval_samples)
        return (self.domain, *sizes, self.temperature, self.max_new_tokens)

    def _require(self, name: str, holds: bool, rule: str) -> None:
        require(self, name, holds, rule)
