"""SPIN: the model learns to prefer a reference to its own answers, against itself as the round began.

    python -m agents.spin --domain shell
    python -m agents.spin --chosen best --reward likelihood      # without labels

Self-play fine-tuning (Chen et al. 2024, arXiv:2401.01335). For a task x with the reference y* and an answer
y' of the model itself, the loss is the logistic one of DPO,

    -log sigmoid(beta * ((log p(y* | x) - log q(y* | x)) - (log p(y' | x) - log q(y' | x))))

where p is the policy that trains and q the policy as the round began: the previous iterate, not the base. A
round trains on its own pairs and on those of the round before. It ends where the model's answers cannot be
told from the references.

`--chosen reference` is the paper's, and takes a label for each task. `--chosen best` takes the candidate that
`--reward` scores highest in place of the reference, so that no label is needed.

Departures: every different candidate makes a pair, where the paper draws one answer, so that the budget is
that of the other trainers. The tasks of each round are new. AdamW on a LoRA adapter takes the place of
RMSProp on all weights, and so the learning rate is larger than the paper's 5e-7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from agents.cli.command import run_command
from agents.cli.display import say
from agents.cli.values import require_counts
from agents.training.contrast import PairConfig
from agents.training.trl_config import require_trl

if TYPE_CHECKING:
    from agents.training.rollouts import Rollout
    from agents.training.update import Example

NOTHING = "no pair, so nothing was trained: every answer is the reference, was cut, or has no score"


@dataclass(frozen=True)
class Config(PairConfig):
    """SPIN: the model learns to prefer a reference, or its own best answer, to its other answers."""

    chosen: Literal["reference", "best"] = "reference"
    """What is preferred: the task's reference, which is a label, or the candidate with the highest score."""
    reward: str = "likelihood"
    """Chooses with --chosen best; otherwise it only watches (docs/REWARDS.md)."""
    rounds: int = 2
    """Rounds whose pairs are trained on: this one's and those before it."""
    epochs: int = 1
    """Passes over the pairs of a round."""

    @property
    def supervised(self) -> bool:
        """Whether it learns from references, whatever the reward is."""
        return self.chosen == "reference"

    @property
    def reward_watches(self) -> bool:
        """Whether references are chosen, not scores."""
        return self.chosen == "reference"

    def check(self) -> None:
        """Raises InputError for a value out of range, an unknown reward or a faulty domain."""
        super().check()
        require_counts(self, "rounds")
        if self.chosen == "best":
            self._require("candidates", self.candidates > 1, "must be 2 or more with --chosen best")


def pairs_of(commands: Sequence[str], usable: Sequence[bool], chosen: str) -> list[int]:
    """Which candidates of a task are rejected for the chosen command: each different one once.

    Args:
        usable: whether a candidate has an end to learn; one that was cut has none.
    """
    seen = {chosen}
    rejected = []
    for row, (command, whole) in enumerate(zip(commands, usable, strict=True)):
        if whole and command and command not in seen:
            seen.add(command)
            rejected.append(row)
    return rejected


def best_of(group: Sequence[Rollout]) -> Rollout | None:
    """The candidate with the highest score, the first of equals; None where none may be learnt."""
    acceptable = [rollout for rollout in group if rollout.acceptable is not None]
    return max(acceptable, key=lambda rollout: rollout.acceptable or 0.0, default=None)


def main(config: Config) -> int:
    """Runs the rounds, or resumes them, and prints the table of cycles and the run's folder."""
    require_trl("SPIN")
    from agents.evaluation.heldout import HeldOut
    from agents.training.loop import Loop
    from agents.training.pairs import Pair
    from agents.training.session import open_session
    from agents.training.supervised import forward_examples
    from agents.training.trl_dpo import Preference, train_on_pairs
    from agents.training.update import examples_of
    from envs.verify.effects import effects_of
    from envs.verify.truth import find_case
    from rewards.labelled import Truth
    from rewards.registry import shown

    preferred = "the reference (labelled)" if config.supervised else f"the best by {shown(config.reward)}"
    say(f"prefers {preferred} to every other candidate, pairs of {config.rounds} rounds")
    with open_session("spin", config, evaluation=HeldOut, truth=Truth, effects=effects_of) as session:
        policy = session.policy

        def preferred_of(group: Sequence[Rollout]) -> tuple[str, Example] | None:
            """The command that the other candidates of a task are rejected for, and its tokens."""
            if not config.supervised:
                best = best_of(group)
                return None if best is None else (best.command, examples_of(policy, [best])[0])
            case = find_case(group[0].task)
            if case is None:
                return None
            policy.labels += 1
            return case.reference, forward_examples(policy, [Pair(case.task, case.reference)])[0]

        def pairs_of_group(group: Sequence[Rollout]) -> list[Preference]:
            chosen = preferred_of(group)
            if chosen is None:
                return []
            command, (prompt, wanted) = chosen
            usable = [not rollout.truncated for rollout in group]
            rows = pairs_of([rollout.command for rollout in group], usable, command)
            others = examples_of(policy, [group[row] for row in rows])
            return [Preference(prompt, wanted, other) for _, other in others]

        with Loop(config, session) as loop:
            for cycle in loop.cycles():
                batch = loop.collect("before")
                own = [pair for group in batch.groups for pair in pairs_of_group(group)]
                rounds = [*loop.memory.get("rounds", []), own][-config.rounds :]
                loop.memory["rounds"] = rounds
                pairs = [Preference(*pair) for pairs in rounds for pair in pairs]
                trained: dict[str, float | None] = {"train/pairs": float(len(pairs))}
                with loop.training():
                    if pairs:
                        trained |= train_on_pairs(
                            policy,
                            pairs,
                            **config.of_update,
                            sft=0.0,
                            reference="cycle",
                            stream_parts=(config.seed, cycle, "train"),
                            folder=session.run.folder,
                        )
                    else:
                        loop.line(NOTHING)
                loop.finish(batch, trained)
        return loop.end()


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
