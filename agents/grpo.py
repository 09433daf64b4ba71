"""GRPO: the candidates of a task that score above the others become likelier, by clipped steps.

    python -m agents.grpo --reward likelihood
    python -m agents.grpo --beta 0 --trl scale_rewards=none loss_type=dr_grpo

Group relative policy optimization (Shao et al. 2024, arXiv:2402.03300), by TRL's `GRPOTrainer`. There is
no value model: the mean score of a task's G candidates is the baseline of each. With r_i the score of
candidate i and y_it its t-th token,

    advantage   A_i = (r_i - mean of the task's r) / (their standard deviation + 1e-4)
    policy      L_it = -min(ratio_it A_i, clip(ratio_it, 1 - c, 1 + c) A_i)
                with ratio_it = p(y_it) now / p(y_it) when it was written
    KL          K_it = ref/p - log(ref/p) - 1 at y_it, to the base model (Schulman's k3, never below 0)
    loss        sum over the step's tokens of L_it + beta K_it, over the mean number of tokens per step

with TRL's default `loss_type=dapo` (Yu et al. 2025, arXiv:2503.14476): every token has the same weight,
however long its command. Each cycle writes and scores tasks x candidates once, and makes --epochs passes
over them in steps of --batch-size. The optimizer and its moments last for the whole run, at a constant
learning rate. What TRL does and what it does not: agents/training/trl_online.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from agents.cli.command import run_command
from agents.training.trl_config import OnlineConfig, require_trl


@dataclass(frozen=True)
class Config(OnlineConfig):
    """GRPO: the model learns which of its commands for a task scored above the others, by clipped steps."""

    algorithm = "GRPO"

    beta: float = 0.05
    """Weight of the KL to the base model in the loss; 0 leaves it out."""
    clip: float = 0.2
    """Clip range of the ratio of new to old probability, per token."""


def main(config: Config) -> int:
    """Runs the cycles, or resumes them, and prints the table of cycles and the run's folder."""
    require_trl(config.algorithm)
    from agents.evaluation.heldout import HeldOut
    from agents.training.trl_online import run
    from envs.verify.effects import effects_of
    from rewards.labelled import Truth

    return run(config, evaluation=HeldOut, truth=Truth, effects=effects_of)


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
