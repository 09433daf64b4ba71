"""GRPO: of the candidates of a task, those that score above the others become likelier, the others less so, by clipped steps.

    python -m agents.grpo --reward likelihood
    python -m agents.grpo --beta 0 --trl scale_rewards=none loss_type=dr_grpo

Group relative policy optimization (Shao et al. 2024, arXiv:2402.03300), by TRL's `GRPOTrainer`. No value model is learnt: what a task's G
candidates score on average is the baseline of each of them. With r_i the score of candidate i and y_it its t-th token,

    advantage   A_i = (r_i - mean of the task's r) / (their standard deviation + 1e-4)
    policy      L_it = -min(ratio_it A_i, clip(ratio_it, 1 - c, 1 + c) A_i), with ratio = p(y_it) now / p(y_it) when it was written
    KL          K_it = ref/p - log(ref/p) - 1 at y_it, to the base (Schulman's k3, not below 0)
    loss        sum over the step's tokens of L_it + beta K_it, over the mean number of tokens of the cycle's steps

with TRL's default `loss_type=dapo` (Yu et al. 2025, arXiv:2503.14476): every token weighs the same, however long its command. Each cycle
writes and scores tasks x candidates once, and takes --epochs passes over them in steps of --batch-size. The optimizer and its moments last
for the whole run, at a constant learning rate. What TRL does and what it does not: agents/training/trl_online.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from agents.cli.command import run_command
from agents.training.config import TrainConfig


@dataclass(frozen=True)
class Config(TrainConfig):
    """GRPO: the model learns which of its own commands for a task scored above the others, by clipped steps held to its base."""

    beta: float = 0.05
    """Weight of the KL to the base in the loss; 0 leaves it out."""
    clip: float = 0.2
    """How far the ratio of new to old probability may move a token's loss."""
    batch_size: int = 10
    """Candidates in a training step; of the divisors of tasks x candidates the nearest is taken."""
    micro_batch: int | None = None
    """Candidates in one forward pass; gradients are summed up to the step. By default the whole step: less saves memory."""
    epochs: int = 1
    """Passes over the candidates of a cycle."""
    lora_dropout: float = 0.0
    """Dropout of the LoRA adapter; in [0, 1). It would be on while TRL writes and measures, so there is none by default."""
    trl: tuple[str, ...] = ()
    """More options of TRL's GRPOConfig, `key=value`, several with spaces between: use_vllm=true vllm_mode=colocate."""

    def check(self) -> None:
        """Raises InputError for a value out of range, an unknown reward or option of TRL, or a faulty domain."""
        super().check()
        self._require(
            "candidates", self.candidates > 1, "must be 2 or more: candidates of a task are compared"
        )
        self._require("beta", 0 <= self.beta < math.inf, "must be 0 or more")
        self._require("clip", 0 < self.clip < math.inf, "must be above 0")
        self._require("micro_batch", self.micro_batch is None or self.micro_batch >= 1, "must be 1 or more")
        if self.trl:
            arguments(self)


def arguments(config: Config) -> Any:
    """The run's settings as TRL's `GRPOConfig`; InputError as in `trl_arguments`."""
    from agents.training.trl_online import trl_arguments

    own = {"beta": config.beta, "epsilon": config.clip, "num_iterations": config.epochs}
    return trl_arguments("GRPOConfig", config, config.micro_batch, config.trl, **own)


def main(config: Config) -> int:
    """Runs the cycles, or goes on with them, and prints the table of cycles and the run's folder."""
    from agents.training.trl_online import step_line, train
    from rewards.registry import shown

    settings = arguments(config)
    from agents.training.session import open_session
    from rewards.labelled import Truth

    print(
        f"reward: {shown(config.reward)}, {step_line(config, config.epochs)}, KL weight {config.beta:g}",
        flush=True,
    )
    session = open_session("grpo", config, truth=Truth)
    try:
        return train("GRPOTrainer", config, session, settings)
    finally:
        session.run.close()


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
