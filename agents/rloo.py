"""RLOO: the candidates of a task that score above the others become likelier, by REINFORCE in clipped steps.

    python -m agents.rloo --reward likelihood
    python -m agents.rloo --beta 0.1 --trl normalize_advantages=true

REINFORCE with a leave-one-out baseline (Kool et al. 2019, openreview.net/forum?id=r1lgTGL5DE; for
language models Ahmadian et al. 2024, arXiv:2402.14740), by TRL's `RLOOTrainer`. A completion is one
action. Its log-probability is the sum over its tokens, and its baseline is the mean of the task's other G
- 1 candidates, which leaves the gradient unbiased. With s_i the score of candidate i,

    reward      r_i = s_i - beta (log p(y_i) - log ref(y_i)) when it was written: a KL penalty on the score
    advantage   A_i = r_i - mean of the other candidates' r
    loss        mean over the step's candidates of -min(ratio_i A_i, clip(ratio_i, 1 - c, 1 + c) A_i)
                with ratio_i = p(y_i) now / p(y_i) then

A truncated candidate is not trained and has no penalty, but counts in the others' baseline.
`train/clip_fraction` counts commands here, not tokens. The advantage is in units of the score: unlike
GRPO's it is small where a task's candidates score nearly alike. Each cycle writes and scores tasks x
candidates once, and makes --epochs passes over them in steps of --batch-size. The optimizer and its
moments last for the whole run, at a constant learning rate. What TRL does and what it does not:
agents/training/trl_online.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from agents.cli.command import run_command
from agents.training.trl_config import OnlineConfig, require_trl


@dataclass(frozen=True)
class Config(OnlineConfig):
    """RLOO: the model learns which of its commands for a task scored above the others, by REINFORCE."""

    algorithm = "RLOO"

    beta: float = 0.05
    """How much each nat of KL to the base model, per command, lowers the score; 0 leaves it out."""
    clip: float = 0.2
    """Clip range of the ratio of new to old probability, per command."""


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
