"""Intrinsic rivals: rewards from the policy's own certainty and agreement, without reconstruction.

All but `base-rating` are scored under the policy as it is, adapter on; there is no inverter to choose.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from envs.prompts import forward_prompt, judge_prompt, points_prompt
from envs.types import InputError, LanguageModel, Prompt, Reward, Score, Task
from rewards.base import EMPTY, NOT_A_NUMBER, Effects, Ingredients, different, grouped, pairs_of

YES = ("yes", "Yes", "YES")
NO = ("no", "No", "NO")
POINTS = ("0", "1", "2", "3", "4", "5")
ORDERS = (0, 2, 4)  # the criterion with which each of the verdicts begins


def self_certainty(given: Ingredients) -> Reward:
    """Makes the reward `self-certainty`."""
    return Certainty(given.model, "self-certainty")


def entropy(given: Ingredients) -> Reward:
    """Makes the reward `entropy`."""
    return Certainty(given.model, "entropy")


def majority(_: Ingredients) -> Reward:
    """Makes the reward `majority`."""
    return Majority()


def majority_effect(given: Ingredients) -> Reward:
    """Makes the reward `majority-effect`; InputError where commands cannot be executed."""
    if given.effects is None:
        raise InputError(
            "--reward majority-effect: executes commands, which cannot be done here: use majority"
        )
    return Majority(given.effects)


def self_rating(given: Ingredients) -> Reward:
    """Makes the reward `self-rating`."""
    return SelfRating(given.model)


def base_rating(given: Ingredients) -> Reward:
    """Makes the reward `base-rating`."""
    return SelfRating(given.model, "base")


def self_judge(given: Ingredients) -> Reward:
    """Makes the reward `self-judge`."""
    return SelfJudge(given.model)


def answer_logprobs(
    model: LanguageModel, prompts: Sequence[Prompt], answers: Sequence[str]
) -> list[list[float]]:
    """Log-probability, in nats, of each of some short answers after each prompt -> [P][A]."""
    asked = [prompt for prompt in prompts for _ in answers]
    rows = model.logprobs(asked, list(answers) * len(prompts))
    sums = [math.fsum(row) for row in rows]
    return [sums[start : start + len(answers)] for start in range(0, len(sums), len(answers))]


class Certainty:
    """How certain the policy is of a command's tokens, after the prompt that asks for the command.

    `self-certainty` is the mean of KL(uniform || p) over the tokens (Intuitor: Zhao et al. 2025,
    arXiv:2505.19590). `entropy` is the negative mean entropy (RENT: Prabhudesai et al. 2025,
    arXiv:2505.22660). p is the next-token distribution at temperature 1. Both in nats: self-certainty has no
    upper bound, negative entropy is at most 0. The command is tokenised again, without an end-of-sequence
    token.
    """

    inverter: str | None = None

    def __init__(self, model: LanguageModel, kind: Literal["self-certainty", "entropy"]) -> None:
        self.model, self.kind = model, kind

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G]; `seed` is not used."""
        pairs = pairs_of(tasks_P, commands_P_G)
        asked = different(pairs)
        prompts = [forward_prompt(task) for task, _ in asked]
        measured = self.model.entropies(prompts, [command for _, command in asked])
        scores = {}
        for pair, values in zip(asked, measured, strict=True):
            scores[pair] = self._score(values)
        return grouped([scores.get(pair, EMPTY) for pair in pairs], commands_P_G)

    def _score(self, values: tuple[float, float] | None) -> Score:
        if values is None:
            return NOT_A_NUMBER
        entropy, certainty = values
        if not math.isfinite(entropy) or not math.isfinite(certainty):
            return NOT_A_NUMBER
        if self.kind == "self-certainty":
            return Score(certainty)
        return Score(-entropy)


class Majority:
    """The share of the task's candidates that are the same command, up to white space, or do the same.

    This is the majority vote of TTRL (Zuo et al. 2025, arXiv:2504.16084). The paper gives 1 to the most
    frequent answer and 0 to the others. The share keeps that order and says how large the majority is.

    Args:
        effects: says what commands do (see `rewards.base.Effects`); then equal effects are one vote, as in
            MBR-Exec (Shi et al. 2022, arXiv:2204.11454). A command that fails, or of which nothing shows, is
            no vote and scores 0; else all that fail would agree. All abstain where one cannot be executed.
    """

    inverter: str | None = None

    def __init__(self, effects: Effects | None = None) -> None:
        self.effects = effects

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G]; `seed` is not used. ValueError for a group of one: it agrees with itself."""
        if len(tasks_P) != len(commands_P_G):
            raise ValueError("as many groups of commands as tasks are needed")
        scores_P_G = []
        for task, commands in zip(tasks_P, commands_P_G, strict=True):
            if len(commands) == 1:
                raise ValueError("a majority needs two or more candidates of a task")
            scores_P_G.append(self._shares(commands, self._votes(task, commands)))
        return scores_P_G

    def _votes(self, task: Task, commands: Sequence[str]) -> Sequence[str] | None:
        """What each candidate votes for: nothing where it is empty. Of the task only the domain is used."""
        if self.effects is None:
            return [" ".join(command.split()) for command in commands]
        effects = self.effects(task.domain, [command for command in commands if command.strip()])
        if effects is None:
            return None
        rest = iter(effects)
        return [next(rest) if command.strip() else "" for command in commands]

    @staticmethod
    def _shares(commands: Sequence[str], votes: Sequence[str] | None) -> list[Score]:
        if votes is None:
            unknown = Score(None, reason="cannot be executed here")
            return [unknown if command.strip() else EMPTY for command in commands]
        counts = Counter(votes)
        scores = []
        for command, vote in zip(commands, votes, strict=True):
            if not command.strip():
                scores.append(EMPTY)
            elif not vote:
                scores.append(Score(0.0, reason="fails, or nothing shows"))
            else:
                scores.append(Score(counts[vote] / len(votes)))
        return scores


class SelfRating:
    """Points from 0 to 5 that the policy gives the command, as an expectation, divided by 5.

    The judge of Self-Rewarding (Yuan et al. 2024, arXiv:2401.10020): one point for each of five criteria. The
    paper samples three verdicts, reads a number out of each and averages. Here the probabilities of the
    answers 0 to 5 give the mean of infinitely many, and the three verdicts are of prompts with the criteria
    in another order. In [0, 1]; the part `points` is the expectation.

    Args:
        judge: `current`, the policy as it trains, or `base`, the model below it, which stays as it is. The
            latter is direct RLAIF (d-RLAIF; Lee et al. 2023, arXiv:2309.00267): the expected score of a judge
            goes straight into RL, without a reward model. The paper asks for 1 to 10.
    """

    inverter: str | None = None

    def __init__(self, model: LanguageModel, judge: Literal["current", "base"] = "current") -> None:
        self.model, self.judge = model, judge

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G]; `seed` is not used."""
        pairs = pairs_of(tasks_P, commands_P_G)
        asked = different(pairs)
        prompts = [points_prompt(task, command, first) for task, command in asked for first in ORDERS]
        with self.model.inverter(self.judge):
            verdicts = [expected_points(row) for row in answer_logprobs(self.model, prompts, POINTS)]
        scores = {}
        for row, pair in enumerate(asked):
            points = math.fsum(verdicts[row * len(ORDERS) : (row + 1) * len(ORDERS)]) / len(ORDERS)
            known = math.isfinite(points)
            scores[pair] = Score(points / 5, {"points": points}) if known else NOT_A_NUMBER
        return grouped([scores.get(pair, EMPTY) for pair in pairs], commands_P_G)


def expected_points(logprobs: Sequence[float]) -> float:
    """The mean of 0, 1, 2 ... under log-probabilities, up to a common factor; NaN where that is not known."""
    highest = max(logprobs)
    if not math.isfinite(highest):
        return math.nan
    weights = [math.exp(value - highest) for value in logprobs]
    return math.fsum(points * weight for points, weight in enumerate(weights)) / math.fsum(weights)


class SelfJudge:
    """P(yes): the domain's judge prompt asks the policy whether the command does the task.

    The probability of `YES` among `YES` and `NO`, each summed over its spellings: small models answer in
    lower case, instruct models with a capital. Nothing is decoded, so no reply can be unreadable (compare
    Kadavath et al. 2022, arXiv:2207.05221).
    """

    inverter: str | None = None

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G]; `seed` is not used."""
        pairs = pairs_of(tasks_P, commands_P_G)
        asked = different(pairs)
        prompts = [judge_prompt(task, command) for task, command in asked]
        scores = {}
        for pair, logprobs in zip(asked, answer_logprobs(self.model, prompts, (*YES, *NO)), strict=True):
            scores[pair] = self._score(logprobs[: len(YES)], logprobs[len(YES) :])
        return grouped([scores.get(pair, EMPTY) for pair in pairs], commands_P_G)

    @staticmethod
    def _score(yes: Sequence[float], no: Sequence[float]) -> Score:
        highest = max(*yes, *no)
        if any(math.isnan(value) for value in (*yes, *no)) or highest == -math.inf:
            return NOT_A_NUMBER
        weight_yes = math.fsum(math.exp(value - highest) for value in yes)
        weight_no = math.fsum(math.exp(value - highest) for value in no)
        return Score(weight_yes / (weight_yes + weight_no))
