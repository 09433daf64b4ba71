"""Supervised fine-tuning on labelled pairs of a task and its command, the ordinary first step for a model.

    python -m agents.sft --model smollm2 --domain shell --examples 200
    python -m agents.sft --domain shell --pairs my.jsonl      # one {"task": "...", "command": "..."} per line

A cycle is a pass over the pairs, forwards (a task is asked, its command is the answer) and backwards (a
command is asked about, its task is the answer). The model's own commands are written and scored in each
cycle as in every trainer, but here they are only watched.

The pairs are labels. Without --pairs they are the domain's own, from its split `pretrain`: other trainers
draw their tasks from `train` and the evaluation from `heldout`, and no sentence is in two of the three. Some
pairs are held back. The loss on these chooses the cycle to keep and ends the run early, so they count as
labels too. The count lies next to the adapter, and every run that starts from it says it.

It looks up references, and is supervised by definition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from agents.cli.command import run_command
from agents.cli.display import say
from agents.cli.values import require_counts
from agents.training.config import TrainConfig, finite

if TYPE_CHECKING:
    from agents.training.supervised import Schedule
    from envs.types import Task

EXAMPLES = 200  # of the domain's own pairs, where --examples is not given


@dataclass(frozen=True)
class Config(TrainConfig):
    """Supervised fine-tuning: the model learns from labelled pairs of a task and its command."""

    pairs: str | None = None
    """FILE.jsonl with `task`, `command` and, if --domain has several, `domain`. Default: the domain's own."""
    examples: int | None = None
    """Pairs to use, those held back included. Each counts as a label. Default: 200, or all of --pairs."""
    validation: float = 0.1
    """Share of the pairs held back for the validation loss; 0 holds none back and never ends early."""
    both_directions: bool = True
    """Train backwards as well: from the command to the task."""
    cycles: int = 3
    """Cycles: passes over the pairs, if --epochs is 1."""
    epochs: int = 1
    """Passes over the pairs in a cycle, after which the validation loss is measured."""
    patience: int = 2
    """The run ends when the validation loss has had no new minimum for this many cycles."""
    keep: Literal["last", "validation"] = "validation"  # type: ignore[assignment]
    """Adapter to end with: of the cycle with the lowest validation loss, or of the last one."""
    lr: float = 5e-4
    """Highest learning rate. Default with the embedded model: 1e-3."""
    warmup: float = 0.1
    """Share of all steps in which the learning rate rises to --lr; it falls to 0 over the rest. A run that is
    resumed with more --cycles jumps to the rate that a run of that many has there."""
    batch_size: int = 16
    """Examples per training step."""
    lora_r: int = 32
    """Rank of the LoRA adapter."""
    lora_targets: Literal["attention", "all-linear"] = "all-linear"
    """What of a layer has LoRA: the projections of attention (all, where it has none), or all linear ones."""
    lora_alpha: int = 64
    """Scale of the LoRA adapter: its output is multiplied by alpha / r."""
    lora_dropout: float = 0.0
    """Dropout of the LoRA adapter; in [0, 1)."""
    force: bool = True
    """Start although the first answers are mostly invalid: the pairs are to teach the format."""
    tasks: int = 20
    """Tasks per cycle for which commands are written, to be watched."""
    candidates: int = 2
    """Commands written for each of them."""
    reward: str = "likelihood"
    """Scores what is watched (docs/REWARDS.md); nothing is learnt from it."""

    @property
    def supervised(self) -> bool:
        """True: the pairs are labels."""
        return True

    @property
    def reward_watches(self) -> bool:
        """True: pairs are learnt, and candidates only show how it goes."""
        return True

    def check(self) -> None:
        """Raises InputError for a value out of range, an unknown reward or a faulty domain."""
        from agents.training.pairs import read_pairs, some_of
        from envs.domain import domain_names, load_domain

        super().check()
        watched = "must be 0, since candidates are only watched here: leave it out"
        self._require("redraw", self.redraw == 0, watched)
        self._require("pairs", self.pairs != "", "must not be empty: leave the flag out for its default")
        require_counts(self, "examples", least=2)
        self._require("validation", 0 <= self.validation < 1, "must be in [0, 1): 0.1 is the default")
        require_counts(self, "patience")
        self._require("warmup", 0 <= self.warmup < 1, "must be in [0, 1): 0.1 is the default")
        if self.pairs is not None:
            domains = [load_domain(name) for name in domain_names(self.domain)]
            some_of(read_pairs(Path(self.pairs), domains, ()), self.examples, self.seed)


def best_of(losses: Sequence[float]) -> int:
    """The cycle with the lowest validation loss, the first of several; losses[0] is before training."""
    return min(range(len(losses)), key=lambda cycle: losses[cycle])


def is_over(losses: Sequence[float], patience: int) -> bool:
    """Whether the validation loss has had no new minimum for `patience` cycles."""
    return bool(losses) and len(losses) - 1 - best_of(losses) >= patience


def in_words(config: Config, training: int, validation: int) -> str:
    """For the user: which pairs, how many labels, how they are used."""
    origin = config.pairs or "the domain's own, from split pretrain"
    used = training + validation
    repeated = ""
    if config.pairs is None and used < (config.examples or EXAMPLES):
        repeated = f" ({config.examples or EXAMPLES:,} asked: more tasks would repeat sentences)"
    ways = "both directions" if config.both_directions else "forwards alone"
    parts = f"{training:,} to train on, {validation:,} held back, {ways}"
    return f"labels: {used:,} pairs{repeated}, {origin}; {parts}"


def facts(trained: Mapping[str, float | None], losses: Sequence[float]) -> str:
    """One cycle's losses, in nats per token."""
    line = f"train loss {trained['train/loss']:.3f}"
    if losses:
        line += f", validation loss {losses[-2]:.3f} -> {losses[-1]:.3f}"
    return line


def schedule_of(config: Config, steps: int) -> Schedule:
    """The learning rate over all cycles of `steps` steps each."""
    from agents.training.supervised import Schedule

    return Schedule(config.lr, int(config.warmup * config.cycles * steps), config.cycles * steps)


def jump(before: Config, now: Config, steps: int, step: int) -> str:
    """For the user: where the learning rate jumps to if a run goes on to another number of cycles."""
    was, becomes = schedule_of(before, steps).at(step), schedule_of(now, steps).at(step)
    return (
        f"goes on to {now.cycles} cycles instead of {before.cycles}: the learning rate jumps from {was:.2g} "
        f"to {becomes:.2g}, where a run of {now.cycles} cycles has it"
    )


def main(config: Config) -> int:
    """Trains, or resumes, and prints the table of cycles and the run's folder."""
    from agents.evaluation.heldout import HeldOut
    from agents.training.pairs import draw_pairs, held_back, read_pairs, some_of
    from envs.domain import domain_names, load_domain
    from envs.verify.effects import effects_of
    from envs.verify.truth import find_case
    from rewards.labelled import Truth

    def reference(task: Task) -> str | None:
        case = find_case(task)
        return case.reference if case else None

    domains = [load_domain(name) for name in domain_names(config.domain)]
    if config.pairs is None:
        pairs = draw_pairs(domains, config.examples or EXAMPLES, config.seed, reference)
    else:
        exclude = HeldOut(*config.held_out).texts
        pairs = some_of(read_pairs(Path(config.pairs), domains, exclude), config.examples, config.seed)

    # They load torch, for which no mistake should wait.
    from agents.training.loop import Loop
    from agents.training.session import open_session
    from agents.training.supervised import Tuner, forward_examples, inverse_examples, loss_of

    training, validation = held_back(pairs, config.validation, config.seed)
    if not validation:
        config = replace(config, keep="last")
    say(in_words(config, len(training), len(validation)))

    with open_session("sft", config, evaluation=HeldOut, truth=Truth, effects=effects_of) as session:
        policy = session.policy
        with Loop(config, session) as loop:
            examples = forward_examples(policy, training)
            checks = {"forward": forward_examples(policy, validation)}
            if config.both_directions:
                examples += inverse_examples(policy, training)
                checks["inverse"] = inverse_examples(policy, validation)
            steps = config.epochs * math.ceil(len(examples) / config.batch_size)  # in a cycle
            schedule, done = schedule_of(config, steps), loop.cycle * steps
            tuner = Tuner(policy, schedule, config.batch_size, loop.restored, done)
            loop.save = tuner.save

            def validated() -> dict[str, float | None]:
                """`validation/*`, whose mean of the directions joins the losses that a checkpoint keeps."""
                if not validation:
                    return {}
                metrics: dict[str, float | None] = {}
                for direction, held in checks.items():
                    metrics[f"validation/{direction}"] = loss_of(policy, held)
                together = [pair for held in checks.values() for pair in held]
                loss = finite("validation loss", loss_of(policy, together), tuner.step)
                loop.memory.setdefault("validation", []).append(loss)
                return {**metrics, "validation/loss": loss}

            if session.state:
                before = replace(config, cycles=session.state["results"]["config"]["cycles"])
                if before.cycles != config.cycles and loop.cycle < loop.last:
                    loop.line(jump(before, config, steps, done))
            else:
                session.run.scalars(0, 0, validated())
            if loop.last < config.cycles:
                loop.line(f"ended early in cycle {loop.last}: start a new run with a larger --patience")
            for cycle in loop.cycles():
                if cycle == 1:
                    policy.labels += len(pairs)
                watched = loop.collect("before")
                with loop.training():
                    trained = tuner.train(examples, config.epochs, config.seed, cycle, "train")
                    trained |= validated()
                losses = loop.memory.get("validation", [])
                loop.line(facts(trained, losses))
                over = is_over(losses, config.patience) and cycle < config.cycles
                if over:
                    loop.line(f"ends here: no lower validation loss for {config.patience} cycles")
                best = best_of(losses) if config.keep == "validation" else None
                loop.finish(watched, trained, best=best, stop=over)
        return loop.end()


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
