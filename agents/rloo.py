"""RLOO: of the candidates of a task, those that score above the rest of them become likelier, as REINFORCE has it, by clipped steps.

    python -m agents.rloo --reward likelihood
    python -m agents.rloo --beta 0.1 --trl normalize_advantages=true

REINFORCE with a leave-one-out baseline (Kool et al. 2019, openreview.net/forum?id=r1lgTGL5DE; for language models Ahmadian et al. 2024,
arXiv:2402.14740), by TRL's `RLOOTrainer`. A completion is one action, its log-probability the sum over its tokens, and its baseline what
the task's other G - 1 candidates got on average, which leaves the gradient unbiased. With s_i the score of candidate i,

    reward      r_i = s_i - beta (log p(y_i) - log ref(y_i)) when it was written: the KL to the base is a penalty on the score
    advantage   A_i = r_i - mean of the other candidates' r
    loss        mean over the step's candidates of -min(ratio_i A_i, clip(ratio_i, 1 - c, 1 + c) A_i), with ratio = p(y_i) now / p(y_i) then

A candidate that was cut is not trained and has no penalty, but counts in the others' baseline. `train/clip_fraction` counts commands
here, not tokens. The advantage is in units of the score: unlike GRPO's it is small where a task's candidates score nearly alike. Each
cycle writes and scores tasks x candidates once, and takes --epochs passes over them in steps of --batch-size. The optimizer and its
moments last for the whole run, at a constant learning rate. What TRL does and what it does not: agents/training/trl_online.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from agents.cli.command import run_command
from agents.training.config import TrainConfig


@dataclass(frozen=True)
class Config(TrainConfig):
    """RLOO: the model learns which of its own commands for a task scored above the rest, by REINFORCE held to its base."""

    beta: float = 0.05
    """What a nat of KL to the base, over the whole command, takes from the score; 0 leaves it out."""
    clip: float = 0.2
    """How far the ratio of new to old probability may move a command's loss."""
    batch_size: int = 10
    """Candidates in a training step; of the divisors of tasks x candidates the nearest is taken."""
    micro_batch: int | None = None
    """Candidates in one forward pass; gradients are summed up to the step. By default the whole step: less saves memory."""
    epochs: int = 1
    """Passes over the candidates of a cycle."""
    lora_dropout: float = 0.0
    """Dropout of the LoRA adapter; in [0, 1). It would be on while TRL writes and measures, so there is none by default."""
    trl: tuple[str, ...] = ()
    """More options of TRL's RLOOConfig, `key=value`, several with spaces between: use_vllm=true vllm_mode=colocate."""

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
    """The run's settings as TRL's `RLOOConfig`; InputError as in `trl_arguments`."""
    from agents.training.trl_online import trl_arguments

    own = {"beta": config.beta, "epsilon": config.clip, "num_iterations": config.epochs}
    return trl_arguments("RLOOConfig", config, config.micro_batch, config.trl, **own)


def main(config: Config) -> int:
    """Runs the cycles, or goes on with them, and prints the table of cycles and the run's folder."""
    from agents.training.trl_online import step_line, train
    from rewards.registry import shown

    settings = arguments(config)
    from agents.training.session import open_session
    from rewards.labelled import Truth

    print(
        f"reward: {shown(config.reward)}, {step_line(config, config.epochs)}, {config.beta:g} of the score for a nat of KL",
        flush=True,
    )
    session = open_session("rloo", config, truth=Truth)
    try:
        return train("RLOOTrainer", config, session, settings)
    finally:
        session.run.close()


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
