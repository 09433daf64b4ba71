"""Constitutional AI: the model revises its answers by principles, then learns from preferences by principles.

    python -m agents.constitutional --domain shell
    python -m agents.constitutional --constitution my-principles.yaml --revisions 4 --cycles 10

Bai et al. 2022, arXiv:2212.08073. There are two stages, both without labels.

1. Revising. The model answers a task. It is asked to criticise the answer by a principle, and then to revise
   it in the light of its critique; again for each of `--revisions`, each time by a principle drawn at random.
   Supervised fine-tuning learns all revisions as answers to the task alone.
2. Preferring. The model answers a task twice. A judge is asked by each principle which answer is better, A or
   B. Its probability of A is the preference. It is averaged over both orders, since judges like a place, and
   over all principles. The paper trains a preference model on these and then a policy with PPO on that. Here
   DPO learns the pairs, as in the recipe of Hugging Face's alignment handbook.

The principles are sentences in a file of configs/constitutions. The judge is the base model, which stays as
it is (`--judge base`), or the policy. Both stages have the budget of any other trainer: `--tasks` x
`--candidates` answers a cycle. Critiques and revisions come on top and are counted.

Departures: no examples of critiques stand before the prompts; revisions whose gates are closed, such as those
that are no command, are not learnt; there is no second set of prompts that only ask for help. DPO's reference
is the policy as each cycle began, since each cycle has new pairs; the recipe's is the model after the first
stage, which holds the policy back for longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from agents.cli.command import run_command
from agents.cli.display import say
from agents.cli.values import require_counts
from agents.training.constitution import Principle, preferences, read_constitution
from agents.training.contrast import PairConfig
from agents.training.trl_config import require_trl
from envs.types import InputError

if TYPE_CHECKING:
    from agents.policy.policy import Policy
    from agents.training.rollouts import Batch, Rollout
    from agents.training.run import Run
    from agents.training.session import Session

NO_REVISION = "no revision may be learnt, so nothing was trained: none is a command"
NO_PAIR = "no preference is clear, so nothing was trained: lower --margin"


@dataclass(frozen=True)
class Config(PairConfig):
    """Constitutional AI: the model learns from its own revisions and preferences, both by principles."""

    constitution: str = "commands"
    """The principles: the name of a file in configs/constitutions, or the path of a YAML file."""
    revise_cycles: int | None = None
    """Cycles of revising, before those of preferring. Default: half of those that the run began with."""
    revisions: int = 2
    """Times that an answer is criticised and revised."""
    judge: Literal["base", "current"] = "base"
    """Who says which of two answers is better: the base model (adapter off), or the policy."""
    margin: float = 0.05
    """How far from one half a preference must be, to make a pair; in [0, 0.5)."""
    reward: str = "likelihood"
    """It only watches (docs/REWARDS.md). Of its gates, those of a revision must be open."""
    candidates: int = 2
    """Answers written to each task. The first is revised; the first two that differ are compared."""
    tasks: int = 75
    """Tasks per cycle."""
    batch_size: int = 4
    """Revisions or pairs per training step."""
    epochs: int = 1
    """Passes over the revisions or the pairs of a cycle."""

    @property
    def reward_watches(self) -> bool:
        """True: principles choose, and of the reward only its gates."""
        return True

    def check(self) -> None:
        """Raises InputError for a value out of range, an unknown reward, a faulty domain or constitution."""
        super().check()
        self._require("candidates", self.candidates > 1, "must be 2 or more: two are compared")
        require_counts(self, "revisions")
        self._require("margin", 0 <= self.margin < 0.5, "must be in [0, 0.5)")
        within = self.revise_cycles is None or 0 <= self.revise_cycles <= self.cycles
        self._require("revise_cycles", within, f"must be between 0 and --cycles {self.cycles}")
        read_constitution(self.constitution)


def revised(
    session: Session, config: Config, cycle: int, batch: Batch, principles: Sequence[Principle]
) -> list[Rollout]:
    """All revisions of the first answer to each task, scored: critique, revise, and again."""
    from agents.training.rollouts import scored
    from envs.prompts import critique_prompt, revise_prompt
    from envs.streams import seed_of, stream

    policy = session.policy
    tasks = [group[0].task for group in batch.groups]
    commands = [group[0].command for group in batch.groups]
    options: dict[str, Any] = {"temperature": config.temperature, "max_new_tokens": config.max_new_tokens}
    found: list[Rollout] = []
    for turn in range(config.revisions):
        parts = (config.seed, cycle, "revise", turn)
        rng = stream(*parts)
        drawn = [rng.choice(principles).text for _ in tasks]
        asked = list(zip(tasks, commands, drawn, strict=True))
        critiques = policy.generate(
            [critique_prompt(*one) for one in asked], seed=seed_of(*parts, "critique"), **options
        )
        prompts = [
            revise_prompt(*one, critique=row[0].text) for one, row in zip(asked, critiques, strict=True)
        ]
        written = policy.generate(prompts, seed=seed_of(*parts, "revision"), **options)
        new = [group[0] for group in scored(session.reward, tasks, written, seed_of(*parts, "reward"))]
        # What is no command is not revised further.
        commands = [one.command or before for one, before in zip(new, commands, strict=True)]
        found += new
    return found


def first_two(group: Sequence[Rollout]) -> tuple[int, int] | None:
    """Positions of the first two answers that differ and have an end to learn; None where there are none."""
    seen: dict[str, int] = {}
    for row, rollout in enumerate(group):
        if rollout.command and not rollout.truncated:
            seen.setdefault(rollout.command, row)
    if len(seen) < 2:
        return None
    first, second, *_ = seen.values()
    return first, second


def preferred_pairs(
    policy: Policy, batch: Batch, principles: Sequence[Principle], judge: str, margin: float
) -> list[tuple[int, int]]:
    """Positions in a batch of the better and the worse answer of each task with a clear preference."""
    asked, places = [], []
    start = 0
    for group in batch.groups:
        two = first_two(group)
        if two is not None:
            asked.append((group[0].task, group[two[0]].command, group[two[1]].command))
            places.append((start + two[0], start + two[1]))
        start += len(group)
    found = []
    for chance, (first, second) in zip(preferences(policy, asked, principles, judge), places, strict=True):
        if abs(chance - 0.5) > margin:  # never so where it is NaN
            found.append((first, second) if chance > 0.5 else (second, first))
    return found


def must_be_the_same(run: Run, name: str, principles: Sequence[Principle]) -> None:
    """Raises InputError where the principles of a run are not those that it began with."""
    now = {"principles": [list(principle) for principle in principles]}
    if not run.began_with("constitution", now):
        problem = "its principles are not those that the run began with"
        raise InputError(f"--constitution {name}: {problem}: restore the file, or start a new run")


def main(config: Config) -> int:
    """Runs both stages, or resumes them, and prints the table of cycles and the run's folder."""
    require_trl("Constitutional AI")
    from agents.evaluation.heldout import HeldOut
    from agents.training.loop import Loop
    from agents.training.session import open_session
    from agents.training.trl_dpo import preferences_of, train_on_pairs
    from agents.training.update import examples_of, fine_tune
    from envs.verify.effects import effects_of
    from rewards.labelled import Truth

    principles = read_constitution(config.constitution)
    names = ", ".join(principle.name for principle in principles)
    with open_session(
        "constitutional", config, evaluation=HeldOut, truth=Truth, effects=effects_of
    ) as session:
        policy = session.policy
        must_be_the_same(session.run, config.constitution, principles)
        revising = config.cycles // 2 if config.revise_cycles is None else config.revise_cycles
        # A run that is extended does not go back from preferring to revising.
        revising = session.state.get("memory", {}).get("revise_cycles", revising)
        say(f"principles: {names}; {revising} cycles of revising, then preferring")
        with Loop(config, session) as loop:
            loop.memory["revise_cycles"] = revising
            for cycle in loop.cycles():
                batch = loop.collect("before")
                new: list[Rollout] = []
                kept: list[int] = []
                pairs: list[tuple[int, int]] = []
                if cycle <= revising:
                    with loop.timed("generate"):
                        new = revised(session, config, cycle, batch, principles)
                    kept = [row for row, rollout in enumerate(new) if rollout.acceptable is not None]
                else:
                    with loop.timed("reward"):
                        pairs = preferred_pairs(policy, batch, principles, config.judge, config.margin)
                stream_parts = (config.seed, cycle, "train")
                trained: dict[str, float | None] = {}
                with loop.training():
                    if kept:
                        trained = fine_tune(
                            policy,
                            examples_of(policy, [new[row] for row in kept]),
                            lr=config.lr,
                            batch_size=config.batch_size,
                            epochs=config.epochs,
                            stream_parts=stream_parts,
                        )
                    elif pairs:
                        trained = train_on_pairs(
                            policy,
                            preferences_of(policy, batch, pairs),
                            **config.of_update,
                            sft=0.0,
                            reference="cycle",
                            stream_parts=stream_parts,
                            folder=session.run.folder,
                        )
                    else:
                        loop.line(NO_REVISION if cycle <= revising else NO_PAIR)
                trained |= {"train/revisions": float(len(kept)), "train/pairs": float(len(pairs))}
                chosen = [better for better, _ in pairs]
                loop.finish(batch, trained, chosen, others={"revised": (new, kept)} if new else {})
        return loop.end()


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
