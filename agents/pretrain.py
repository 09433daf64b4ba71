"""Makes the embedded model: a tiny Mistral, from scratch, on a CPU.

    python -m agents.pretrain --output my-model                     # 20 to 25 minutes of one core
    python -m agents.rejection_sft --model my-model
    python -m agents.pretrain --inverse-noise 0.9 --output noisy    # one with a bad inverse

It learns from the `pretrain` split of the domains. The text is noisy on purpose: agents/pretraining/corpus.py
says how. This is supervised learning by definition. That is why this command may import `envs.verify`, as
evaluation may; no trainer may.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from agents.cli.command import run_command
from agents.cli.display import say
from agents.cli.files import check_output
from agents.cli.values import require_counts
from agents.policy.names import EMBEDDED
from agents.pretraining.corpus import Corpus, CorpusConfig
from envs.domain import domain_names, load_domain
from envs.types import InputError


@dataclass(frozen=True)
class Config(CorpusConfig):
    """Pre-trains a small model like the embedded one, from scratch."""

    output: str | None = None
    """Folder for weights, tokenizer and card. Required; `embedded` replaces the model that ships here."""
    examples: int = 340_000
    """Training examples; each is seen once."""
    batch_size: int = 64
    """Examples per step."""
    lr: float = 0.02
    """Peak learning rate of Muon, for the matrices; AdamW has a fifth of it, for the rest."""
    hidden: int = 128
    """Width."""
    layers: int = 4
    """Depth."""
    vocabulary: int = 1024
    """Tokens of the byte-level BPE."""

    def check(self) -> None:
        """Raises InputError for values that cannot work."""
        super().check()
        if not self.output:
            raise InputError("--output: name a folder for the model, such as --output my-model")
        if self.output not in EMBEDDED:
            check_output(self.output)
            self._must_be_free(Path(self.output))
        require_counts(self, "examples", most=10**9)
        require_counts(self, "batch_size")
        require_counts(self, "hidden", "layers", most=65_536)
        require_counts(self, "vocabulary", least=300, most=65_536)
        require_counts(self, "seed", least=0, most=2**63 - 1)
        if not 0 < self.lr <= 10:
            raise InputError(f"--lr {self.lr}: must be above 0 and at most 10: 0.02 is the default")
        if self.hidden % 4:
            raise InputError(f"--hidden {self.hidden}: must be a multiple of 4")
        for name in domain_names(self.domain):
            load_domain(name)

    def _must_be_free(self, output: Path) -> None:
        """An earlier model of this command is replaced, and nothing else."""
        if (output / "config.yaml").exists():
            raise InputError(f"--output {output}: is the folder of a run: choose another folder")
        if output.is_dir() and any(output.iterdir()) and not (output / "pretrain.json").is_file():
            raise InputError(f"--output {output}: holds something else: choose a new or empty folder")


def main(config: Config) -> int:
    """Builds the corpus, the tokenizer and the weights, and writes everything into one folder."""
    # torch and transformers take seconds to import: not for --help.
    import torch

    from agents.pretraining.card import card, measure
    from agents.pretraining.model import batches, completion_loss, make_model, make_tokenizer

    corpus = Corpus(config)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more are slower on matrices this small
    tokenizer = make_tokenizer(corpus, config.vocabulary)
    model = make_model(tokenizer, config.hidden, config.layers, config.seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    steps = math.ceil(config.examples / config.batch_size)
    say(f"{parameters:,} parameters, {len(tokenizer)} tokens, {steps:,} steps")

    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and "embed" not in name
        (matrices if is_matrix else others).append(parameter)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=config.lr, weight_decay=0.01),
        torch.optim.AdamW(others, lr=config.lr / 5, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    schedule = warm_up_then_cosine(steps)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, schedule) for optimizer in optimizers]

    digest = hashlib.sha256()
    average = 0.0  # of the loss, over about the last 100 steps
    model.train()
    with Bar(steps) as bar:
        data = batches(corpus, tokenizer, config.examples, config.batch_size, config.seed, digest)
        for step, (inputs, labels) in enumerate(data, 1):
            loss = completion_loss(model, inputs, labels, tokenizer.pad_token_id)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad(set_to_none=True)
            average = loss.item() if step == 1 else 0.99 * average + 0.01 * loss.item()
            bar.step(step, average)

    output = EMBEDDED.get(str(config.output), Path(str(config.output)))
    output.mkdir(parents=True, exist_ok=True)
    model.eval()
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    facts = {
        "config": settings(config),
        "parameters": parameters,
        "corpus_sha256": digest.hexdigest(),
        "final_loss": round(average, 4),
    }
    (output / "pretrain.json").write_text(json.dumps(facts, indent=1) + "\n")

    torch.set_num_threads(threads)
    measured = measure(output, config.domain)
    (output / "README.md").write_text(card(command_line(config), facts, measured))
    for name, value in measured.items():
        say(f"{name:42} {value:.3f}")
    say(output)
    return 0


def settings(config: Config) -> dict[str, Any]:
    """What makes the model: everything but where it is written."""
    values = asdict(config)
    del values["output"]
    return values


def command_line(config: Config) -> str:
    """The command that makes this model, with the flags that are not the defaults."""
    words = ["python -m agents.pretrain --output FOLDER"]
    defaults = settings(Config())
    for name, value in settings(config).items():
        if value != defaults[name]:
            words.append(f"--{name.replace('_', '-')} {value}")
    return " ".join(words)


def warm_up_then_cosine(steps: int) -> Callable[[int], float]:
    """Factor of the learning rate at each step: up in the first 500 (or a tenth of all), then down to 0."""
    warm_up = min(500, steps // 10)

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / (warm_up + 1))
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
        return rise * fall

    return factor


class Bar:
    """Progress: a bar on a terminal, a line every 500 steps elsewhere."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.interactive = sys.stdout.isatty()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            disable=not self.interactive,
        )
        self.task = self.progress.add_task("pre-training", total=steps)

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()

    def step(self, step: int, loss: float) -> None:
        """Shows that a step is done."""
        self.progress.update(self.task, advance=1, description=f"pre-training  loss {loss:.3f}")
        if not self.interactive and (step % 500 == 0 or step == self.steps):
            say(f"step {step:,} of {self.steps:,}  loss {loss:.4f}")


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
