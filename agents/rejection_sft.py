"""Rejection-sampling SFT, the documented loop: write, reconstruct, score, accept, train, repeat.

    python -m agents.rejection_sft --cycles 10
    python -m agents.rejection_sft --reward likelihood --domain shell --seed 1

Each cycle scores tasks x candidates BEFORE, accepts some of them, trains the adapter on the accepted ones
(loss on the command alone, in the template that generation uses), and scores as many candidates of fresh
tasks AFTER. The scores come from the policy itself. Whether they mean anything is for the held-out
accuracy in `eval/*` to say, from which nothing here can learn.

With --alternate every second cycle trains the other direction, as RTRL does (Kong et al. 2025,
arXiv:2510.01527): descriptions of each accepted command are written, and the best ones are learnt as what the
command does. Three things differ. The paper takes steps of GRPO; here the best are kept, as in the other
cycles. It has a set of outputs; here they are the model's own accepted commands. And a description that holds
the command is left out. The forward cycles are RTRL's with --reward likelihood.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from agents.cli.command import run_command
from agents.cli.display import say
from agents.cli.values import require_counts
from agents.training.config import TrainConfig

if TYPE_CHECKING:
    from agents.training.recorded import Group
    from agents.training.rollouts import Batch

NOTHING = "nothing was accepted, so nothing was trained: lower --threshold, or use --select best"
SHARES = {"best": 0.8, "quantile": 0.3}  # --keep-share where it is not given


@dataclass(frozen=True)
class Config(TrainConfig):
    """Rejection-sampling SFT: the model trains on those of its commands that score well."""

    tasks: int = 50
    """Tasks per cycle before training, and as many after it, which only measure."""
    threshold: float = 0.5
    """With --select threshold: the lowest score that is accepted; in [0, 1]."""
    epochs: int = 1
    """Passes over the accepted candidates of a cycle."""
    select: Literal["threshold", "best", "quantile"] | None = None
    """Acceptance: score >= --threshold, best of each task, or top --keep-share. Default: the reward's own."""
    keep_share: float | None = None
    """Share accepted: of the tasks' best candidates (best; 0.8 if not given) or of all (quantile; 0.3)."""
    warmup: float | None = None
    """Share of a cycle's steps in which the learning rate rises; then it falls to 0. Default: constant."""
    replay: Literal["none", "all"] = "none"
    """Train on the accepted candidates of this cycle alone (none), or of all cycles so far (all)."""
    include_greedy: bool = False
    """The first candidate of each task is the greedy command; the others are sampled."""
    top_k: int = 0
    """Sample among the K likeliest tokens alone; 0 takes all. With --top-p: the control of sampling alone."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together have this probability; in (0, 1]."""
    after_tasks: int | None = None
    """Tasks after each update, which only measure. Default: as many as before it."""
    alternate: bool = False
    """Every second cycle learns to describe the accepted commands, by how likely that makes them (RTRL)."""
    rollouts: str | None = None
    """Learn from the candidates of this run's first cycle instead of writing them; {seed} is --seed."""

    def check(self) -> None:
        """Raises InputError for a value out of range, an unknown reward or a faulty domain."""
        from agents.studies.settings import read_settings

        super().check()
        self._require("threshold", 0 <= self.threshold <= 1, "must be in [0, 1]")
        self._require("warmup", self.warmup is None or 0 <= self.warmup < 1, "must be in [0, 1)")
        require_counts(self, "after_tasks")
        self._require("rollouts", self.rollouts != "", "must not be empty: leave the flag out")
        self._require("top_k", self.top_k >= 0, "must be 0 (all tokens) or more")
        require_counts(self, "top_k", least=0)
        self._require("top_p", 0 < self.top_p <= 1, "must be in (0, 1]")
        forward = "learns commands again, and --alternate descriptions: leave one of them out"
        self._require("replay", self.replay == "none" or not self.alternate, forward)
        plain = self.top_k == 0 and self.top_p == 1
        drawn = "its candidates are written: leave --top-k and --top-p out"
        self._require("rollouts", self.rollouts is None or plain, drawn)
        again = "its candidates are written: leave --redraw out"
        self._require("rollouts", self.rollouts is None or self.redraw == 0, again)
        if self.rollouts is not None and "{seed}" not in self.rollouts:
            read_settings(Path(self.rollouts), "give the folder of another run")
        self._require("keep_share", self.keep_share is None or 0 < self.keep_share <= 1, "must be in (0, 1]")


class Candidate(NamedTuple):
    """A candidate with a score; `position` counts all candidates, task after task."""

    position: int
    score: float


def select(
    values_P_G: Sequence[Sequence[float | None]], rule: str, threshold: float, keep: float
) -> list[int]:
    """Positions of the accepted candidates, counted task after task.

    Args:
        values_P_G: scores, G candidates for each of P tasks; None for a candidate that must not be accepted.
        rule: `threshold`: every score >= threshold. `best`: the best of each task, if among the top
            `keep` of these. `quantile`: the top `keep` of all scores. Of equal scores the first one
            written is the better.
    """
    tasks: list[list[Candidate]] = []
    position = 0
    for values in values_P_G:
        candidates = []
        for value in values:
            if value is not None:
                candidates.append(Candidate(position, value))
            position += 1
        tasks.append(candidates)

    scored = [candidate for candidates in tasks for candidate in candidates]
    if rule == "threshold":
        return [candidate.position for candidate in scored if candidate.score >= threshold]
    if rule == "best":
        scored = [min(candidates, key=_best_first) for candidates in tasks if candidates]
    best_first = sorted(scored, key=_best_first)
    kept = best_first[: math.ceil(keep * len(best_first))]
    return sorted(candidate.position for candidate in kept)


def _best_first(candidate: Candidate) -> tuple[float, int]:
    return -candidate.score, candidate.position


def accepted_of(batch: Batch, config: Config) -> list[int]:
    """Positions in a batch of the candidates that are accepted."""
    return select(batch.acceptable, str(config.select), config.threshold, float(config.keep_share or 1.0))


def in_words(config: Config) -> str:
    """For the user: what is accepted."""
    if config.select == "threshold":
        return f"scores from {config.threshold:g} on"
    if config.select == "best":
        return f"the best of each task, the top {config.keep_share:.0%} of these"
    return f"the top {config.keep_share:.0%} of all scores"


def main(config: Config) -> int:
    """Runs the protocol, or resumes it, and prints the table of cycles and the run's folder."""
    from agents.evaluation.heldout import HeldOut
    from agents.training.recorded import of_cycle, read_candidates, with_seed
    from envs.verify.effects import effects_of
    from rewards.labelled import Truth
    from rewards.registry import reward_info, shown

    rule = config.select or reward_info(config.reward).select
    share = config.keep_share or SHARES.get(rule, 1.0)
    config = replace(config, select=rule, keep_share=share)  # type: ignore[arg-type]
    recorded: Sequence[Group] = ()
    if config.rollouts is not None:
        config = replace(config, rollouts=with_seed(config.rollouts, config.seed))
        recorded = read_candidates(Path(str(config.rollouts)), config, HeldOut(*config.held_out).texts)

    # They load torch, for which no mistake should wait.
    from agents.training.inverse import described
    from agents.training.loop import Loop
    from agents.training.pairs import Pair
    from agents.training.rollouts import Drawing, read_accepted
    from agents.training.session import open_session
    from agents.training.supervised import inverse_examples
    from agents.training.update import Example, examples_of, fine_tune
    from envs.streams import seed_of

    drawing = Drawing(config.include_greedy, config.top_k, config.top_p)
    say(f"reward: {shown(config.reward)}, accepting {in_words(config)}")
    with open_session(
        "rejection_sft", config, evaluation=HeldOut, truth=Truth, effects=effects_of
    ) as session:
        policy = session.policy
        with Loop(config, session) as loop:
            replayed: list[Example] = []
            if config.replay == "all":  # of a resumed run, from its own log
                earlier = read_accepted(session.run.folder / "rollouts.jsonl", ["before"])
                replayed = examples_of(policy, earlier)
            for cycle in loop.cycles():
                if recorded:
                    before = loop.score(of_cycle(recorded, cycle, config.tasks))
                else:
                    before = loop.collect("before", drawing=drawing)
                accepted = accepted_of(before, config)
                chosen = [before.rollouts[row] for row in accepted]
                others = {}
                if config.alternate and cycle % 2 == 0:
                    with loop.timed("generate"):
                        descriptions_P_G = described(
                            policy,
                            chosen,
                            candidates=config.candidates,
                            temperature=config.temperature,
                            seed=seed_of(config.seed, cycle, "describe"),
                        )
                    descriptions = list(itertools.chain(*descriptions_P_G))
                    values_P_G = [[one.score.value for one in group] for group in descriptions_P_G]
                    best = select(values_P_G, "best", 0.0, SHARES["best"])
                    pairs = [Pair(descriptions[row].task, descriptions[row].command) for row in best]
                    examples = inverse_examples(policy, pairs)
                    others = {"described": (descriptions, best)}
                else:
                    examples = replayed + examples_of(policy, chosen)
                if config.replay == "all":
                    replayed = examples
                trained: dict[str, float | None] = {"train/examples": 0.0}
                with loop.training():
                    if examples:
                        trained = fine_tune(
                            policy,
                            examples,
                            lr=config.lr,
                            batch_size=config.batch_size,
                            epochs=config.epochs,
                            warmup=config.warmup,
                            stream_parts=(config.seed, cycle, "train"),
                        )
                    else:
                        loop.line(NOTHING)
                after = loop.collect("after", config.after_tasks, drawing)
                loop.finish(before, trained, accepted, (after, accepted_of(after, config)), others=others)
        return loop.end()


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
