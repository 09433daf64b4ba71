"""Online DPO: for each task the policy learns to prefer its best-scored candidate to its worst-scored one.

    python -m agents.dpo --reward likelihood
    python -m agents.dpo --reward likelihood --reference base --beta 0.5

Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290) lowers, for a pair (x, y+, y-) of
a prompt and two commands,

    -log sigmoid(beta * ((log p(y+ | x) - log r(y+ | x)) - (log p(y- | x) - log r(y- | x))))

where p is the policy that trains and r a reference that does not. Here the pairs are the policy's own
(Guo et al. 2024, arXiv:2402.04792): in each cycle it writes candidates, they are scored, the best and the
worst of a task become a pair, and TRL's `DPOTrainer` makes its passes over the pairs. The reference is
the policy at the start of the cycle, or its base model. The scores only order the candidates: how far
apart they are matters for `--margin` alone.

The loss adds `--sft` times the negative log-likelihood of y+ per token, as Pang et al. (2024,
arXiv:2404.19733) do in iterative DPO. DPO alone takes probability from the rejected command, which need
not go to the chosen one.

The optimizer is new in each cycle, as is the trainer and, with `--reference cycle`, the objective. So the
adapter is all that a cycle passes on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from agents.cli.command import run_command
from agents.cli.display import say
from agents.training.contrast import PairConfig, pairs_of_batch, score_margin
from agents.training.trl_config import require_trl

NOTHING = "no pair of commands, so nothing was trained: lower --margin, or raise --candidates"


@dataclass(frozen=True)
class Config(PairConfig):
    """Online DPO: the model learns to prefer its best-scored command for a task to its worst-scored one."""

    margin: float = 0.02
    """Smallest difference of score in a pair; equal scores never make one."""
    reference: Literal["cycle", "base"] = "cycle"
    """Reference of the policy: itself at the start of the cycle, or the base model (adapter off)."""
    sft: float = 1.0
    """Weight of the negative log-likelihood of the chosen commands, per token; 0 is DPO alone."""
    epochs: int = 2
    """Passes over the pairs of a cycle."""

    def check(self) -> None:
        """Raises InputError for a value out of range, an unknown reward or a faulty domain."""
        super().check()
        self._require("candidates", self.candidates > 1, "must be 2 or more: a pair is made of two")
        for name in ("margin", "sft"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "must be 0 or more")


def main(config: Config) -> int:
    """Runs the cycles, or resumes them, and prints the table of cycles and the run's folder."""
    require_trl("online DPO")
    from agents.evaluation.heldout import HeldOut
    from agents.training.loop import Loop
    from agents.training.session import open_session
    from agents.training.trl_dpo import preferences_of, train_on_pairs
    from envs.verify.effects import effects_of
    from rewards.labelled import Truth
    from rewards.registry import shown

    reference = "itself at the start of the cycle" if config.reference == "cycle" else "its base model"
    pairs_in_words = f"pairs of scores {config.margin:g} apart or more"
    say(f"reward: {shown(config.reward)}, {pairs_in_words}, reference of the policy: {reference}")
    with open_session("dpo", config, evaluation=HeldOut, truth=Truth, effects=effects_of) as session:
        with Loop(config, session) as loop:
            for cycle in loop.cycles():
                batch = loop.collect("before")
                pairs = pairs_of_batch(batch, config.margin)
                trained: dict[str, float | None] = {
                    "train/pairs": float(len(pairs)),
                    "select/pairs": len(pairs) / len(batch.groups),
                }
                with loop.training():
                    if pairs:
                        trained["train/score_margin"] = score_margin(batch, pairs)
                        trained |= train_on_pairs(
                            session.policy,
                            preferences_of(session.policy, batch, pairs),
                            **config.of_update,
                            sft=config.sft,
                            reference=config.reference,
                            stream_parts=(config.seed, cycle, "train"),
                            folder=session.run.folder,
                        )
                    else:
                        loop.line(NOTHING)
                loop.finish(batch, trained, accepted=[chosen for chosen, _ in pairs])
        return loop.end()


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
