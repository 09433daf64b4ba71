"""Rejection-sampling SFT, the documented loop: write, read back, score, keep the good ones, train on them, again.

    python -m agents.rejection_sft --cycles 10
    python -m agents.rejection_sft --reward likelihood --domain shell --seed 1

Each cycle scores tasks x candidates BEFORE, accepts some of them, trains the adapter on the accepted ones (loss on the command
alone, in the template that generation uses), and scores as many candidates of fresh tasks AFTER. Scores come from the policy
itself; whether they mean anything is for the held-out truth in `eval/*` to say, which nothing here can learn from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from agents.cli.command import run_command
from agents.training.config import TrainConfig

if TYPE_CHECKING:
    from agents.policy.policy import Policy
    from agents.training.rollouts import Batch, Rollout
    from agents.training.session import Session
    from agents.training.update import Example


@dataclass(frozen=True)
class Config(TrainConfig):
    """Rejection-sampling SFT: the model trains on those of its own commands that it can read back."""

    tasks: int = 50
    """Tasks in a cycle, before training, and as many again after it, which only measure."""
    threshold: float = 0.5
    """With --select threshold: candidates with at least this score are accepted; in [0, 1]."""
    epochs: int = 1
    """Passes over the accepted candidates in a cycle."""
    select: Literal["threshold", "best", "quantile"] | None = None
    """What is accepted: all from --threshold on, the best of each task, or the top --keep-share. By default what the reward calls for."""
    keep_share: float | None = None
    """Share kept: with `best`, of the tasks' best candidates (default 0.8); with `quantile`, of all candidates (default 0.3)."""
    replay: Literal["none", "all"] = "none"
    """Train on this cycle's accepted candidates alone, or on those of all cycles so far."""

    def check(self) -> None:
        """Raises InputError for a value out of range, an unknown reward or a faulty domain."""
        super().check()
        self._require("threshold", 0 <= self.threshold <= 1, "must be in [0, 1]")
        self._require("keep_share", self.keep_share is None or 0 < self.keep_share <= 1, "must be in (0, 1]")


def select(
    values_P_G: Sequence[Sequence[float | None]], rule: str, threshold: float, keep: float
) -> list[int]:
    """Positions of the accepted candidates, counted task after task. Candidates on which the reward abstained are never accepted.

    Args:
        values_P_G: scores, G candidates for each of P tasks.
        rule: `threshold`: every score >= threshold. `best`: the best of each task, if among the top `keep` of these bests.
            `quantile`: the top `keep` of all scores. Equal scores: the first one written.
    """
    flat = [
        (position, value)
        for position, value in enumerate(value for row in values_P_G for value in row)
        if value is not None
    ]
    if rule == "threshold":
        return [position for position, value in flat if value >= threshold]
    if rule == "best":
        known, start, bests = dict(flat), 0, []
        for row in values_P_G:
            group = [
                (position, known[position])
                for position in range(start, start + len(row))
                if position in known
            ]
            start += len(row)
            bests += [max(group, key=lambda pair: pair[1])] if group else []
        flat = bests
    ranked = sorted(flat, key=lambda pair: (-pair[1], pair[0]))
    return sorted(position for position, _ in ranked[: math.ceil(keep * len(ranked))])


def examples_of(policy: Policy, rollouts: Sequence[Rollout]) -> list[Example]:
    """(prompt ids, command ids + end of sequence): the tokens that were generated, and the end of a line as the end of all."""
    from envs.prompts import forward_prompt

    prompts = policy.prompt_ids([forward_prompt(rollout.task) for rollout in rollouts])
    return [
        (p, [*r.completion.token_ids, policy.tokenizer.eos_token_id])
        for p, r in zip(prompts, rollouts, strict=True)
    ]


def earlier_examples(session: Session) -> list[Example]:
    """What earlier cycles accepted, from the run's own log: for `--replay all` after a resume."""
    from agents.training.rollouts import read_accepted

    return examples_of(session.policy, read_accepted(session.run.folder / "rollouts.jsonl", phase="before"))


def main(config: Config) -> int:
    """Runs the protocol, or goes on with it, and prints the table of cycles and the run's folder."""
    from agents.training.session import open_session
    from rewards.labelled import Truth
    from rewards.registry import reward_info, shown

    rule = config.select or reward_info(config.reward).select
    share = config.keep_share or {"best": 0.8, "quantile": 0.3}.get(rule, 1.0)
    config = replace(config, select=rule, keep_share=share)  # type: ignore[arg-type]
    accepts = {
        "threshold": f"scores from {config.threshold:g} on",
        "best": f"the best of each task, the top {share:.0%} of these",
    }
    print(
        f"reward: {shown(config.reward)}, accepting {accepts.get(rule, f'the top {share:.0%} of all scores')}",
        flush=True,
    )
    session = open_session("rejection_sft", config, truth=Truth)
    try:
        return train(config, session)
    finally:
        session.run.close()


def train(config: Config, session: Session) -> int:
    """The loop itself."""
    from agents.training.loop import Loop
    from agents.training.update import fine_tune

    def accepted_of(batch: Batch) -> list[int]:
        # A command that was cut has no end to learn from, whatever its score.
        values = [
            [None if rollout.completion.truncated else rollout.score.value for rollout in group]
            for group in batch.groups
        ]
        return select(values, str(config.select), config.threshold, float(config.keep_share or 1.0))

    with Loop(config, session) as loop:
        replayed = earlier_examples(session) if config.replay == "all" else []
        for cycle in loop.cycles():
            before = loop.collect("before")
            accepted = accepted_of(before)
            examples = replayed + examples_of(session.policy, [before.rollouts[row] for row in accepted])
            replayed = examples if config.replay == "all" else []
            trained: dict[str, float | None] = {"train/examples": 0.0}
            with loop.training():
                if examples:
                    trained = fine_tune(
                        session.policy,
                        examples,
                        lr=config.lr,
                        batch_size=config.batch_size,
                        epochs=config.epochs,
                        stream_parts=(config.seed, cycle, "train"),
                    )
                else:
                    loop.line(
                        "nothing was accepted, so nothing was trained: lower --threshold, or use --select best"
                    )
            after = loop.collect("after")
            loop.finish(before, trained, accepted, (after, accepted_of(after)))
    return loop.end()


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
