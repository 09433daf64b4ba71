"""Self-Rewarding: the model judges its own answers, and learns to prefer the highest to the lowest verdict.

    python -m agents.self_rewarding --domain shell
    python -m agents.self_rewarding --reward majority --min-score 0.5 --weighted --sft 1      # ScPO

Self-rewarding language models (Yuan et al. 2024, arXiv:2401.10020). In each round the model writes answers
to new tasks and gives each 0 to 5 points (the reward `self-rating`). The answers with the most and the fewest
points make a pair, equal ones none. DPO trains on the pairs, with the model as the round began as its
reference. The next round's judge is the model that comes out, so that the judge changes with the policy.

Self-consistency preference optimization (ScPO; Prasad et al. 2024, arXiv:2411.04109) is its kin by votes in
place of verdicts, as settings: the most and the least voted answer make a pair (`--reward majority`), a task
whose top answer has under half of the votes makes none (`--min-score 0.5`), the difference of their votes
weighs the loss (`--weighted`), and the negative log-likelihood of the chosen answer joins it (`--sft 1`).

Departures: there is no fine-tuning on examples of verdicts first, for which the paper takes labelled ones.
The verdict is an expectation over the tokens 0 to 5, where the paper reads numbers out of three samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agents.cli.command import run_command
from agents.cli.display import say
from agents.training.contrast import PairConfig, pairs_of_batch, score_margin
from agents.training.trl_config import require_trl

if TYPE_CHECKING:
    from agents.training.rollouts import Batch

NOTHING = "no pair, so nothing was trained: the verdicts on each task are equal, or under --min-score"
SMALLEST = 1e-6  # points of a verdict that rounding makes; equal verdicts are no pair


@dataclass(frozen=True)
class Config(PairConfig):
    """Self-Rewarding: the model learns to prefer its answer with the best verdict of its own to the worst."""

    reward: str = "self-rating"
    """The judge: self-rating asks the policy for 0 to 5 points (docs/REWARDS.md)."""
    candidates: int = 4
    """Answers written to each task."""
    min_score: float | None = None
    """The lowest score of a chosen answer. Default: any."""
    weighted: bool = False
    """Weigh each pair in the loss by the difference of its scores."""
    sft: float = 0.0
    """Weight of the negative log-likelihood of the chosen answers, per token."""
    epochs: int = 1
    """Passes over the pairs of a round."""

    def check(self) -> None:
        """Raises InputError for a value out of range, an unknown reward or a faulty domain."""
        super().check()
        self._require("candidates", self.candidates > 1, "must be 2 or more: a pair is made of two")
        self._require("sft", 0 <= self.sft < math.inf, "must be 0 or more")
        finite = self.min_score is None or math.isfinite(self.min_score)
        self._require("min_score", finite, "must be a number: leave it out for any score")


def judged_pairs(batch: Batch, min_score: float | None) -> list[tuple[int, int, float]]:
    """(chosen, rejected, difference of their scores) of each task whose verdicts differ.

    Chosen and rejected are positions in the batch.
    """
    rollouts = batch.rollouts
    found = []
    for chosen, rejected in pairs_of_batch(batch, SMALLEST):
        best, worst = rollouts[chosen].score.value or 0.0, rollouts[rejected].score.value or 0.0
        if min_score is None or best >= min_score:
            found.append((chosen, rejected, best - worst))
    return found


def main(config: Config) -> int:
    """Runs the rounds, or resumes them, and prints the table of cycles and the run's folder."""
    require_trl("Self-Rewarding")
    from agents.evaluation.heldout import HeldOut
    from agents.training.loop import Loop
    from agents.training.session import open_session
    from agents.training.trl_dpo import preferences_of, train_on_pairs
    from envs.verify.effects import effects_of
    from rewards.labelled import Truth
    from rewards.registry import shown

    say(f"judge: {shown(config.reward)}, highest against lowest verdict")
    with open_session(
        "self_rewarding", config, evaluation=HeldOut, truth=Truth, effects=effects_of
    ) as session:
        policy = session.policy
        with Loop(config, session) as loop:
            for cycle in loop.cycles():
                batch = loop.collect("before")
                judged = judged_pairs(batch, config.min_score)
                pairs = [(chosen, rejected) for chosen, rejected, _ in judged]
                preferences = preferences_of(policy, batch, pairs)
                if config.weighted:
                    weights = [difference for _, _, difference in judged]
                    both = zip(preferences, weights, strict=True)
                    preferences = [preference._replace(weight=weight) for preference, weight in both]
                trained: dict[str, float | None] = {
                    "train/pairs": float(len(pairs)),
                    "select/pairs": len(pairs) / len(batch.groups),
                }
                with loop.training():
                    if preferences:
                        trained["train/score_margin"] = score_margin(batch, pairs)
                        trained |= train_on_pairs(
                            policy,
                            preferences,
                            **config.of_update,
                            sft=config.sft,
                            reference="cycle",
                            stream_parts=(config.seed, cycle, "train"),
                            folder=session.run.folder,
                        )
                    else:
                        loop.line(NOTHING)
                loop.finish(batch, trained, accepted=[chosen for chosen, _ in pairs])
        return loop.end()


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
