"""The settings that every trainer has. A trainer's own `Config` derives from `TrainConfig` and adds what its algorithm needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from envs.types import InputError


class TrainingError(RuntimeError):
    """Training went wrong in a way that must not be saved; the last checkpoint stands. Commands print it and exit with code 1."""


@dataclass(frozen=True)
class TrainConfig:
    """Improves a model on its own commands: it writes, reads back, scores and learns, cycle after cycle."""

    cycles: int = 10
    """How many cycles of scoring and training."""
    tasks: int = 50
    """Tasks in a cycle."""
    candidates: int = 3
    """Commands written for each task."""
    temperature: float = 0.7
    """Sampling temperature of the commands."""
    model: str | None = None
    """embedded, mistral-7b, or a Hugging Face name or folder. By default mistral-7b on a CUDA device of 16 GB, else embedded."""
    adapter: str | None = None
    """Start from the PEFT adapter in this folder."""
    load_in_4bit: bool = False
    """Load the base model in 4 bits (CUDA only)."""
    output: str | None = None
    """Folder that holds the runs. By default runs/<agent>."""
    name: str | None = None
    """Name of the run's folder. By default <domain>-<reward>-s<seed>-<id>."""
    lr: float = 2e-4
    """Learning rate. The embedded model has its own default, 1e-3."""
    batch_size: int = 4
    """Examples in a training step."""
    epochs: int = 1
    """Passes over a cycle's examples."""
    lora_r: int = 16
    """Rank of the LoRA adapter."""
    lora_alpha: int = 32
    """Scale of the LoRA adapter: its output is multiplied by alpha / r."""
    lora_dropout: float = 0.05
    """Dropout of the LoRA adapter; in [0, 1)."""
    max_new_tokens: int = 64
    """Longest command, in tokens. The embedded model has its own default, 48."""
    domain: str = "all"
    """An embedded domain (network, shell, sql), all of them, or paths of YAML files; several with commas between."""
    reward: str = "similarity"
    """How a command is scored, a name or a blend's FILE.yaml: docs/REWARDS.md. Only truth uses labels."""
    gates: bool = True
    """Score nothing for commands that are none, or that smuggle their task past the reading back."""
    inverter: Literal["current", "base", "ema"] = "current"
    """Who reads commands back: the model as it trains, its base with the adapter off, or the average of its adapter over the cycles."""
    inverse_temperature: float = 0.3
    """Sampling temperature of the reading back; 0 is greedy, and the default of the embedded model."""
    embedder: str = "all-MiniLM-L6-v2"
    """Sentence-embedding model that compares a task with what was read back."""
    task_source: str = "templates"
    """Where training tasks come from: templates, model, a FILE.jsonl with a task key, or hf:DATASET:COLUMN[:SPLIT]."""
    keep: Literal["last", "best"] = "last"
    """What the run ends with: its last cycle, or the best one by a score that needs no label (docs/TRUTH.md)."""
    eval_tasks: int = 300
    """Held-out tasks in the evaluation before the first cycle and after the last."""
    eval_subset: int = 60
    """How many of them are evaluated after each cycle, greedily; a quarter of these is sampled and scored as well."""
    eval_samples: int = 4
    """Commands sampled for each held-out task: the K of pass@K."""
    seed: int = 0
    """Tasks, samples and training derive from it; the held-out tasks are the same for every seed."""
    resume: str | None = None
    """Go on with the run in this folder. Alone: the run of --output and --name, else the newest run."""
    config: str | None = None
    """YAML file of settings, in the names of these flags with underscores. Flags win over it."""

    def check(self) -> None:
        """Raises InputError, one line that names the flag and the fix: a value out of range, an unknown reward, a faulty domain."""
        from envs.domain import domain_names, load_domain
        from rewards.registry import reward_info

        for name in (
            "cycles",
            "tasks",
            "candidates",
            "batch_size",
            "epochs",
            "lora_r",
            "lora_alpha",
            "max_new_tokens",
        ):
            self._require(name, getattr(self, name) >= 1, "must be 1 or more")
        for name in ("eval_tasks", "eval_subset", "eval_samples"):
            self._require(name, getattr(self, name) >= 1, "must be 1 or more")
        for name in ("temperature", "lr"):
            self._require(name, 0 < getattr(self, name) < float("inf"), "must be above 0")
        self._require("lora_dropout", 0 <= self.lora_dropout < 1, "must be in [0, 1): 0.05 is the default")
        self._require(
            "inverse_temperature", 0 <= self.inverse_temperature < float("inf"), "must be 0 (greedy) or more"
        )
        self._require("seed", self.seed >= 0, "must be 0 or more")
        for name in ("model", "adapter", "output", "domain", "reward", "embedder", "task_source"):
            self._require(
                name, getattr(self, name) != "", "must not be empty: leave the flag out for its default"
            )
        plain = self.name is None or (self.name not in ("", ".", "..") and "/" not in self.name)
        self._require("name", plain, "must be the plain name of a folder: its place is set by --output")

        if reward_info(self.reward).needs_group:
            self._require(
                "candidates",
                self.candidates > 1,
                f"must be 2 or more, since the reward {self.reward} compares candidates",
            )
            self._require(
                "eval_samples",
                self.eval_samples > 1,
                f"must be 2 or more, since the reward {self.reward} compares candidates",
            )
            self._require(
                "keep",
                self.keep == "last",
                f"must be last, since the reward {self.reward} cannot score a single command",
            )
        for name in domain_names(self.domain):
            load_domain(name)

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            value: Any = getattr(self, name)
            shown = "''" if value == "" else value
            raise InputError(f"--{name.replace('_', '-')} {shown}: {rule}")
