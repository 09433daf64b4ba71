"""A reward model learns from preferences between two commands: the first half of RLHF and of RLAIF.

    python -m agents.reward_model --domain shell                          # an AI judge prefers: RLAIF
    python -m agents.reward_model --preferences truth --domain shell      # execution plays the labeller: RLHF
    python -m agents.reward_model --preferences my.jsonl --domain shell   # your own: prompt, chosen, rejected
    python -m agents.ppo --reward rm:runs/reward_model/NAME               # the second half; any trainer does

In each cycle the policy, which stays as it is, writes commands to new tasks. All pairs of different commands
of a task are compared, and the model learns with what probability p the first of two is better, by
cross-entropy against what Bradley and Terry's model says of its scores r:

    loss = -p log sigmoid(r_1 - r_2) - (1 - p) log sigmoid(r_2 - r_1)

With `truth` and with a file p is 1: the loss of InstructGPT (Ouyang et al. 2022, arXiv:2203.02155). A judge
is asked by each principle of a constitution in both orders, and p is its mean probability, as in
Constitutional AI (Bai et al. 2022, arXiv:2212.08073) and RLAIF (Lee et al. 2023, arXiv:2309.00267). The judge
is the base model, or `--judge MODEL`.

How good is it? `preference/accuracy` is the share of new pairs, before it learns them, that it orders as they
are preferred. The held-out evaluation compares its scores with execution, as it does for every reward:
`eval/auc_within`, `eval/best_of_k`. It is saved in `checkpoints/cycle-NNNN/reward_model`, with a card.

Departures: each cycle passes over all preferences so far, where InstructGPT learns each once, since it has a
thousand times as many. Pairs are shuffled over all tasks, where InstructGPT keeps those of a prompt in one
step. The mean score of the candidates is taken off, where InstructGPT takes that of demonstrations. TRL's
RewardTrainer has this loss too. But its checkpoints are not atomic, so a run that is killed while it saves
does not resume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.cli.command import run_command
from agents.cli.display import say
from agents.training.config import TrainConfig, finite
from agents.training.constitution import preferences as judged
from agents.training.constitution import read_constitution
from agents.training.preferences import (
    Pair,
    Preference,
    by_chance,
    by_score,
    learnt_before,
    pairs_to_compare,
    read_preferences,
    rows_of,
)
from envs.streams import stream
from rewards.learnt import OWN

if TYPE_CHECKING:
    from torch import Tensor

    from agents.policy.policy import Policy
    from agents.training.reward_learner import Learner

JUDGE, TRUTH = "judge", "truth"
NOTHING = "no command is preferred to another, so nothing was learnt"


@dataclass(frozen=True)
class Config(TrainConfig):
    """A reward model: it learns which of two commands is preferred, and is a reward for other trainers."""

    preferences: str = JUDGE
    """judge: a model prefers. truth: execution does (labels). Or FILE.jsonl of prompt, chosen, rejected."""
    judge: str = "base"
    """With --preferences judge: the base model (base), or another model, named as for --model."""
    constitution: str = "commands"
    """The judge's principles: the name of a file in configs/constitutions, or the path of a YAML file."""
    reward: str = OWN
    """The model that is learnt here; leave it out."""
    batch_size: int = 16
    """Pairs per training step."""
    epochs: int = 1
    """Passes over all preferences so far, in each cycle."""
    lora_dropout: float = 0.0
    """Dropout of the LoRA adapter; in [0, 1)."""

    @property
    def supervised(self) -> bool:
        """Whether its preferences are labels."""
        return self.preferences != JUDGE

    @property
    def from_file(self) -> bool:
        """Whether its preferences are those of a file."""
        return self.preferences not in (JUDGE, TRUTH)

    @property
    def reward_watches(self) -> bool:
        """True: preferences are learnt, and the scores are those of what learns them."""
        return True

    def check(self) -> None:
        """Raises InputError for a value out of range, a faulty file of preferences or constitution."""
        from agents.policy.folders import check_model

        super().check()
        self._require("preferences", self.preferences != "", "must not be empty: give judge or truth")
        self._require("reward", self.reward == OWN, "is what is learnt here: leave the flag out")
        self._require("keep", self.keep == "last", "must be last: the policy does not change here")
        if not self.from_file:
            self._require("candidates", self.candidates > 1, "must be 2 or more: two are compared")
        if self.judge != "base":
            judges = self.preferences == JUDGE
            self._require("judge", judges, "is for --preferences judge: leave one of the two out")
            check_model(self.judge, f"--judge {self.judge}")
        read_constitution(self.constitution)
        _given(self, ())


def _given(config: Config, exclude: Any) -> list[Preference]:
    """The preferences of a file, without the tasks of the evaluation."""
    from envs.domain import domain_names, load_domain

    if not config.from_file:
        return []
    domains = [load_domain(name) for name in domain_names(config.domain)]
    return read_preferences(Path(config.preferences), domains, exclude, config.seed)


def preference_loss(first_B: Tensor, second_B: Tensor, chance_B: Tensor) -> Tensor:
    """The loss (B,) of pairs: scores of both commands, and how probable it is that the first is better."""
    from torch.nn.functional import logsigmoid

    difference_B = first_B - second_B
    return -chance_B * logsigmoid(difference_B) - (1 - chance_B) * logsigmoid(-difference_B)


def agreement(differences: Sequence[float]) -> float:
    """The share of pairs whose first command has the higher score; equal scores count half."""
    return math.fsum(0.5 if value == 0 else float(value > 0) for value in differences) / len(differences)


def train_on_preferences(
    learner: Learner, preferences: Sequence[Preference], config: Config, *stream_parts: object
) -> dict[str, float | None]:
    """Passes over the preferences -> `train/loss` (nats per pair), `train/grad_norm`, `train/steps`.

    Args:
        stream_parts: (seed, cycle, purpose): order of the pairs and dropout derive from it.

    Raises:
        TrainingError: a loss or a gradient that is NaN or infinite, or weights that did not change.
    """
    from agents.training.update import fitted

    model = learner.model

    def update(size: int) -> dict[str, float | None]:
        return _update(learner, preferences, config, size // 2, *stream_parts)

    def part(size: int) -> int:
        return 2 * min(max(1, size // 2), config.batch_size)  # a pair is two sequences

    return fitted(model.reader, model.trainable(), learner.optimizer, part, update)


def _update(
    learner: Learner, preferences: Sequence[Preference], config: Config, size: int, *stream_parts: object
) -> dict[str, float | None]:
    """The same, with so many pairs in a forward pass."""
    from agents.training.update import clipped_step, updating

    model, optimizer, parameters = learner.model, learner.optimizer, learner.model.trainable()
    first, second = learner.sequences(preferences)
    losses: list[float] = []
    norms: list[float] = []
    with updating(model.reader, config.lr, *stream_parts):
        for epoch in range(config.epochs):
            order = list(range(len(preferences)))
            stream("order", epoch, *stream_parts).shuffle(order)
            for start in range(0, len(order), config.batch_size):
                batch = order[start : start + config.batch_size]
                optimizer.zero_grad(set_to_none=True)
                for place in range(0, len(batch), size):
                    rows = batch[place : place + size]
                    scores = model.forward([first[row] for row in rows] + [second[row] for row in rows])
                    chance_B = scores.new_tensor([preferences[row].chance for row in rows])
                    loss_B = preference_loss(scores[: len(rows)], scores[len(rows) :], chance_B)
                    (loss_B.sum() / len(batch)).backward()
                    losses += loss_B.tolist()
                finite("loss", math.fsum(losses), len(norms) + 1)
                norms.append(clipped_step(optimizer, parameters, 1.0, len(norms) + 1))
    return {
        "train/loss": math.fsum(losses) / len(losses),
        "train/grad_norm": math.fsum(norms) / len(norms),
        "train/steps": float(len(norms)),
    }


def judge_of(config: Config, policy: Policy) -> Policy:
    """The model that judges: the policy itself, for its base, or another, whose use counts as the run's."""
    from agents.policy.load import load_policy
    from agents.training.saved import saved

    if config.judge == "base":
        return policy
    judge = load_policy(config.judge, dtype=policy.compute.dtype, threads=policy.compute.threads)
    judge.usage, judge.scoring = policy.usage, policy.scoring
    policy.usage.models[saved(config)["judge"]] = sum(weights.numel() for weights in judge.model.parameters())
    return judge


def main(config: Config) -> int:
    """Learns, or goes on learning, and prints the table of cycles and the run's folder."""
    from agents.evaluation.heldout import HeldOut
    from agents.training.loop import Loop
    from agents.training.reward_learner import Learner
    from agents.training.saved import saved
    from agents.training.session import open_session
    from envs.verify.effects import effects_of
    from rewards.labelled import Truth

    principles = read_constitution(config.constitution)
    given = _given(config, HeldOut(*config.held_out).texts)
    kept = saved(config)  # with the names that a resumed run has
    about = {name: kept[name] for name in ("preferences", "judge", "constitution")}
    learner = Learner(config, about)
    with open_session(
        "reward_model",
        config,
        evaluation=HeldOut,
        truth=Truth,
        effects=effects_of,
        learnt=learner.begin,
    ) as session:
        policy, usage = session.policy, session.policy.usage
        judge = judge_of(config, policy)
        if not session.state and judge is not policy:
            policy.labels += judge.labels

        def prefer(pairs: Sequence[Pair]) -> list[Preference]:
            """What the judge, or execution in the place of a person, says of pairs."""
            if config.preferences == JUDGE:
                return by_chance(pairs, judged(judge, pairs, principles, "base"))
            usage.preferences += len(pairs)  # each pair that is looked at is a label, a tie as well
            label: Callable[..., Any] = Truth()
            return by_score(pairs, label([task for task, *_ in pairs], [commands for _, *commands in pairs]))

        with Loop(config, session) as loop:
            learner.resume(loop.restored)
            loop.save = learner.save
            preferences = learnt_before(session.run.folder / "preferences.jsonl")
            for cycle in loop.cycles():
                batch = loop.collect("before")
                if config.from_file:
                    new = given[(cycle - 1) * config.tasks : cycle * config.tasks]
                    usage.preferences += len(new)
                else:
                    with loop.timed("reward"):
                        new = prefer(pairs_to_compare(batch))
                preferences += new
                session.run.append("preferences", rows_of(new, cycle))
                trained: dict[str, float | None] = {"train/pairs": float(len(preferences))}
                if new:
                    trained["preference/accuracy"] = agreement(learner.differences(new))
                with loop.training():
                    if preferences:
                        trained |= train_on_preferences(
                            learner, preferences, config, config.seed, cycle, "train"
                        )
                        learner.recenter(batch)
                    else:
                        loop.line(NOTHING)
                loop.finish(batch, trained)
        say(f"use it with --reward rm:{session.run.folder}")
        return loop.end()


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
