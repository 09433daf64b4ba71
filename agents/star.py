"""STaR: right answers are learnt, wrong ones are tried again with a hint, and each round starts over.

    python -m agents.star --domain shell
    python -m agents.star --candidates 32 --per-task 10 --no-rationalize      # ReST-EM
    python -m agents.star --candidates 8 --per-task 1 --no-rationalize --rounds-from last   # RAFT

Self-taught reasoner (Zelikman et al. 2022, arXiv:2203.14465). In each round the model answers tasks, and the
answers that are right are kept. Where none is, it is asked again with the reference as a hint, which the
paper calls rationalization; what is right then is kept without the hint. The model as the run began, not the
last one, is then trained on everything kept so far.

Two kin of it are settings. ReST-EM (Singh et al. 2023, arXiv:2312.06585) draws many answers, keeps at most
ten of a task so that easy tasks do not crowd out hard ones, gives no hints, and starts over too. RAFT (Dong
et al. 2023, arXiv:2304.06767) keeps the best answer of each task, here the first right one, and goes on from
the last round.

It is labelled: a verdict by execution for each task, a reference for each hint. Without hints and with a
reward that takes no labels it takes none. Departures from the papers:

- A command has no rationale before it, so a hinted answer is mostly the hint. STaR is here close to
  supervised fine-tuning on the references of the tasks that it fails.
- Answers are sampled, `--candidates` of each task, where the paper takes one greedy answer. Every trainer has
  the same budget so.
- Each round has new tasks, and what was kept in earlier rounds stays. STaR and ReST-EM answer all their tasks
  again in every round. STaR's number of steps grows by a fifth a round; here it grows with what was kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from agents.cli.command import run_command
from agents.cli.display import say
from agents.cli.values import require_counts
from agents.training.config import TrainConfig

if TYPE_CHECKING:
    from agents.training.rollouts import Batch, Rollout
    from agents.training.session import Session
    from agents.training.update import Example
    from envs.types import Task

NOTHING = "no answer was right so far, so nothing was trained: begin with agents.sft"
PHASES = ("before", "hinted")  # of the log: what is learnt from


@dataclass(frozen=True)
class Config(TrainConfig):
    """STaR: the model learns its right answers, and those that it gets right with the reference as a hint."""

    reward: str = "truth"
    """What says whether an answer is right: truth executes it, which takes labels."""
    threshold: float = 0.5
    """The lowest score of a right answer; in [0, 1]."""
    rationalize: bool = True
    """Try a task without a right answer once more, with its reference as a hint."""
    per_task: int | None = None
    """Right answers of a task that are kept, the first ones. Default: all."""
    rounds_from: Literal["base", "last"] = "base"
    """Train the model as the run began on everything kept so far (base), or the last one on what is new."""
    epochs: int = 1
    """Passes over what is trained in a round."""

    @property
    def supervised(self) -> bool:
        """Whether it looks up references for hints, whatever the reward is."""
        return self.rationalize

    def check(self) -> None:
        """Raises InputError for a value out of range, an unknown reward or a faulty domain."""
        super().check()
        self._require("threshold", 0 <= self.threshold <= 1, "must be in [0, 1]")
        require_counts(self, "per_task")


def right_ones(values_P_G: Sequence[Sequence[float | None]], threshold: float, most: int | None) -> list[int]:
    """Positions of the right answers, counted task after task, at most `most` of a task: the first ones.

    Args:
        values_P_G: scores, G answers to each of P tasks; None for one that must not be learnt.
        threshold: the lowest score of a right answer.
    """
    positions: list[int] = []
    start = 0
    for values in values_P_G:
        right = [start + row for row, value in enumerate(values) if value is not None and value >= threshold]
        positions += right[:most]
        start += len(values)
    return positions


def hints_of(batch: Batch, right: Sequence[int]) -> list[tuple[Task, str]]:
    """The tasks of a batch without a right answer, and their references where these are known."""
    from envs.verify.truth import find_case

    rows = set(right)
    hints = []
    start = 0
    for group in batch.groups:
        case = find_case(group[0].task)
        if case is not None and rows.isdisjoint(range(start, start + len(group))):
            hints.append((case.task, case.reference))
        start += len(group)
    return hints


def hinted(session: Session, config: Config, cycle: int, hints: Sequence[tuple[Task, str]]) -> list[Rollout]:
    """One more answer to each task, with its reference as a hint, scored."""
    from agents.training.rollouts import scored
    from envs.prompts import hint_prompt
    from envs.streams import seed_of

    stream = (config.seed, cycle, "hint")
    written_P_1 = session.policy.generate(
        [hint_prompt(task, command) for task, command in hints],
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        seed=seed_of(*stream),
    )
    tasks = [task for task, _ in hints]
    found = scored(session.reward, tasks, written_P_1, seed_of(*stream, "reward"))
    return [group[0] for group in found]


def main(config: Config) -> int:
    """Runs the rounds, or resumes them, and prints the table of cycles and the run's folder."""
    from agents.evaluation.heldout import HeldOut
    from agents.training.loop import Loop
    from agents.training.rollouts import read_accepted
    from agents.training.rounds import first_adapter
    from agents.training.session import open_session
    from agents.training.update import examples_of, fine_tune
    from envs.verify.effects import effects_of
    from rewards.labelled import Truth
    from rewards.registry import reward_info, shown

    start = "the model as the run began" if config.rounds_from == "base" else "the last round's model"
    retry = ", once more with a hint where none is right" if config.rationalize else ""
    say(f"reward: {shown(config.reward)}, right from {config.threshold:g} on{retry}; trains {start}")
    with open_session("star", config, evaluation=HeldOut, truth=Truth, effects=effects_of) as session:
        policy = session.policy
        with Loop(config, session) as loop:
            first = first_adapter(policy, loop)
            kept: list[Example] = []
            if config.rounds_from == "base":  # of a resumed run, from its own log
                kept = examples_of(policy, read_accepted(session.run.folder / "rollouts.jsonl", PHASES))
            for cycle in loop.cycles():
                batch = loop.collect("before")
                right = right_ones(batch.acceptable, config.threshold, config.per_task)
                again: list[Rollout] = []
                if config.rationalize:
                    hints = hints_of(batch, right)
                    policy.labels += len(hints)
                    if reward_info(config.reward).labelled:  # without hints the loop counts them
                        policy.labels += batch.tasks_scored
                    with loop.timed("generate"):
                        again = hinted(session, config, cycle, hints)
                rationalized = right_ones([[rollout.acceptable] for rollout in again], config.threshold, 1)
                new = [batch.rollouts[row] for row in right] + [again[row] for row in rationalized]
                examples = kept + examples_of(policy, new)
                trained: dict[str, float | None] = {"train/examples": 0.0}
                with loop.training():
                    if config.rounds_from == "base":
                        kept = examples
                        policy.restore(first)
                    if examples:
                        trained = fine_tune(
                            policy,
                            examples,
                            lr=config.lr,
                            batch_size=config.batch_size,
                            epochs=config.epochs,
                            stream_parts=(config.seed, cycle, "train"),
                        )
                    else:
                        loop.line(NOTHING)
                trained |= {"star/right": float(len(right)), "star/rationalized": float(len(rationalized))}
                loop.finish(batch, trained, right, others={"hinted": (again, rationalized)})
        return loop.end()


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
