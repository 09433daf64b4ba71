"""Intrinsic rivals: rewards from the policy's own certainty and agreement, without reading commands back.

They are scored under the policy as it is, adapter on: there is no inverter to choose.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from envs.prompts import forward_prompt, judge_prompt
from envs.types import LanguageModel, Reward, Score, Task
from rewards.base import EMPTY, NOT_A_NUMBER, Ingredients


def self_certainty(given: Ingredients) -> Reward:
    """Makes the reward `self-certainty`."""
    return Certainty(given.model, "self-certainty")


def entropy(given: Ingredients) -> Reward:
    """Makes the reward `entropy`."""
    return Certainty(given.model, "entropy")


def majority(_: Ingredients) -> Reward:
    """Makes the reward `majority`."""
    return Majority()


def self_judge(given: Ingredients) -> Reward:
    """Makes the reward `self-judge`."""
    return SelfJudge(given.model)


class Certainty:
    """How certain is the policy of the command that it wrote, over its tokens after the prompt that asks for it.

    `self-certainty` is the mean of KL(uniform || p) over the tokens (Intuitor: Zhao et al. 2025, arXiv:2505.19590), `entropy` the mean
    entropy with its sign turned (RENT: Prabhudesai et al. 2025, arXiv:2505.22660); p is the next-token distribution at temperature 1.
    Nats; self-certainty has no upper bound, and the other is at most 0. The command is tokenised anew, without an end-of-sequence token.
    """

    inverter: str | None = None

    def __init__(self, model: LanguageModel, kind: Literal["self-certainty", "entropy"]) -> None:
        self.model, self.kind = model, kind

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G]; `seed` is not used."""
        pairs = [
            (task, command)
            for task, commands in zip(tasks_P, commands_P_G, strict=True)
            for command in commands
        ]
        different = list(dict.fromkeys(pair for pair in pairs if pair[1].strip()))
        prompts = [forward_prompt(task) for task, _ in different]
        measured = self.model.entropies(prompts, [command for _, command in different])
        known = {pair: self._score(values) for pair, values in zip(different, measured, strict=True)}
        rest = iter(pairs)
        return [[known.get(next(rest), EMPTY) for _ in commands] for commands in commands_P_G]

    def _score(self, values: tuple[float, float] | None) -> Score:
        if values is None or not all(map(math.isfinite, values)):
            return NOT_A_NUMBER
        entropy, certainty = values
        return Score(certainty if self.kind == "self-certainty" else -entropy)


class Majority:
    """The share of the task's candidates that are the same command but for white space (TTRL: Zuo et al. 2025, arXiv:2504.16084).

    The paper gives 1 to the most frequent answer and 0 to the others; the share keeps that order and says how large the majority is.
    """

    inverter: str | None = None

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G]; `seed` is not used. ValueError for a group of one, whose only candidate always agrees with itself."""
        if len(tasks_P) != len(commands_P_G):
            raise ValueError("as many tasks as groups of commands are needed")
        if any(len(commands) == 1 for commands in commands_P_G):
            raise ValueError("the reward majority needs two or more candidates of a task")
        return [self._group([" ".join(command.split()) for command in commands]) for commands in commands_P_G]

    @staticmethod
    def _group(commands: Sequence[str]) -> list[Score]:
        votes = Counter(commands)
        return [Score(votes[command] / len(commands)) if command else EMPTY for command in commands]


class SelfJudge:
    """P(yes): the policy is asked by the domain's judge prompt whether the command does the task.

    The probability of "yes" among "yes" and "no", from the log-probabilities of the two answers: nothing is decoded, and no reply can be
    unreadable (compare Kadavath et al. 2022, arXiv:2207.05221).
    """

    inverter: str | None = None

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G]; `seed` is not used."""
        pairs = [
            (task, command)
            for task, commands in zip(tasks_P, commands_P_G, strict=True)
            for command in commands
        ]
        different = list(dict.fromkeys(pair for pair in pairs if pair[1].strip()))
        prompts = [judge_prompt(task, command) for task, command in different]
        rows = self.model.logprobs([*prompts, *prompts], ["yes"] * len(prompts) + ["no"] * len(prompts))
        yes, no = rows[: len(prompts)], rows[len(prompts) :]
        known = {
            pair: self._score(math.fsum(y), math.fsum(n))
            for pair, y, n in zip(different, yes, no, strict=True)
        }
        rest = iter(pairs)
        return [[known.get(next(rest), EMPTY) for _ in commands] for commands in commands_P_G]

    @staticmethod
    def _score(yes: float, no: float) -> Score:
        if math.isnan(yes) or math.isnan(no) or max(yes, no) == -math.inf:
            return NOT_A_NUMBER
        return Score(
            math.exp(yes - max(yes, no)) / (math.exp(yes - max(yes, no)) + math.exp(no - max(yes, no)))
        )
