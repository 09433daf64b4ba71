"""Rewards that ask how likely the task is, given the command: forward passes alone, nothing is decoded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from envs.prompts import inverse_prompt
from envs.streams import stream
from envs.types import LanguageModel, Reward, Score, Task
from rewards.base import EMPTY, NOT_A_NUMBER, Ingredients, different, grouped, mean_of_tokens, pairs_of


def likelihood(given: Ingredients) -> Reward:
    """Makes the reward `likelihood`."""
    return Likelihood(given.model, over="mean", inverter=given.inverter)


def likelihood_min(given: Ingredients) -> Reward:
    """Makes the reward `likelihood-min`."""
    return Likelihood(given.model, over="min", inverter=given.inverter)


def lift(given: Ingredients) -> Reward:
    """Makes the reward `lift`."""
    return Lift(given.model, inverter=given.inverter)


def choice(given: Ingredients) -> Reward:
    """Makes the reward `choice`."""
    return Choice(given.model, given.pool, inverter=given.inverter)


class Likelihood:
    """exp of the log-probability of the task's tokens given the command: their mean, or their minimum.

    The mean is the reconstruction term of round-trip correctness (Allamanis et al. 2024) as a probability.
    The minimum finds the one wrong flag or digit that a mean washes out. But where the wording is new to the
    model, the least likely token is that wording, whatever the command. Abstains where the command or the
    task is empty, and where a log-probability is not a number.
    """

    def __init__(
        self, model: LanguageModel, *, over: Literal["mean", "min"] = "mean", inverter: str = "current"
    ) -> None:
        self.model, self.over, self.inverter = model, over, inverter

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G]; `seed` is not used."""
        pairs = pairs_of(tasks_P, commands_P_G)
        asked = different(pairs)
        scores = {}
        for pair, logprobs in zip(asked, _logprobs(self.model, self.inverter, asked), strict=True):
            scores[pair] = self._score(logprobs)
        return grouped([scores.get(pair, EMPTY) for pair in pairs], commands_P_G)

    def _score(self, logprobs: Sequence[float]) -> Score:
        if not logprobs:
            return Score(None, reason="empty task")
        if any(math.isnan(value) for value in logprobs):
            return NOT_A_NUMBER
        mean = math.fsum(logprobs) / len(logprobs)
        parts = {"token_min": math.exp(min(logprobs)), "token_mean": math.exp(mean)}
        return Score(parts[f"token_{self.over}"], parts)


class Lift:
    """How much likelier the command makes the task, in nats per token.

        mean log p(task | command) - mean log p(task | empty command)

    The second term removes what is likely in any case, the wording: this is pointwise mutual information per
    token, as in mutual-information decoding (Li et al. 2016, arXiv:1510.03055). It is computed once for each
    task of a call. Not bounded; below 0 where the command makes the task less likely. Abstains as
    `Likelihood` does.
    """

    def __init__(self, model: LanguageModel, *, inverter: str = "current") -> None:
        self.model, self.inverter = model, inverter

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G]; `seed` is not used."""
        pairs = pairs_of(tasks_P, commands_P_G)
        asked = different(pairs)
        without = dict.fromkeys((task, "") for task, _ in asked)
        means = mean_logprobs(self.model, self.inverter, [*asked, *without])
        scores = {}
        for task, command in asked:
            scores[task, command] = self._score(means[task, command], means[task, ""])
        return grouped([scores.get(pair, EMPTY) for pair in pairs], commands_P_G)

    @staticmethod
    def _score(given: float | None, prior: float | None) -> Score:
        if given is None or prior is None or not math.isfinite(given - prior):
            return NOT_A_NUMBER
        return Score(given - prior, {"given": given, "prior": prior})


class Choice:
    """The probability of the true task among itself and `others` tasks of the same tool.

    It is a softmax over mean log-likelihoods. The other tasks come from `pool`. They are drawn for each task
    and seed, and are the same for all candidates of a task; none has the task's text. Where the task names no
    tool, or the pool has too few tasks of it, tasks of its domain fill up. Chance is 1 / (others + 1).
    Abstains as `Likelihood` does, and where the pool has no other task of the domain.
    """

    def __init__(
        self, model: LanguageModel, pool: Sequence[Task], *, others: int = 4, inverter: str = "current"
    ) -> None:
        self.model, self.others, self.inverter = model, others, inverter
        by_text = {task.text: task for task in pool}
        self.pool = [by_text[text] for text in sorted(by_text)]

    def distractors(self, task: Task, seed: int) -> list[Task]:
        """The other tasks, `others` of them or as many as there are."""
        of_domain = [other for other in self.pool if other.domain == task.domain and other.text != task.text]
        of_tool = [other for other in of_domain if task.tool and other.tool == task.tool]
        rng = stream("choice", seed, task.domain, task.text)
        drawn = rng.sample(of_tool, min(self.others, len(of_tool)))
        rest = [other for other in of_domain if other not in drawn]
        return drawn + rng.sample(rest, min(self.others - len(drawn), len(rest)))

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G] with `wins`: 1 where the true task is the likeliest."""
        pairs = pairs_of(tasks_P, commands_P_G)
        others = {task: self.distractors(task, seed) for task in tasks_P}
        asked = []  # (option, command): every task that a command is compared with
        for task, command in different(pairs):
            if others[task]:
                asked += [(option, command) for option in (task, *others[task])]
        means = mean_logprobs(self.model, self.inverter, asked)
        scores = []
        for task, command in pairs:
            if not command.strip():
                scores.append(EMPTY)
            elif not others[task]:
                scores.append(Score(None, reason="no other task to choose from"))
            else:
                scores.append(self._score([means[option, command] for option in (task, *others[task])]))
        return grouped(scores, commands_P_G)

    @staticmethod
    def _score(means: Sequence[float | None]) -> Score:
        """From the mean log-probabilities of the options, the true task first."""
        values = [mean for mean in means if mean is not None and not math.isnan(mean)]
        if len(values) < len(means) or max(values) == -math.inf:
            return NOT_A_NUMBER
        weights = [math.exp(value - max(values)) for value in values]
        probability = weights[0] / math.fsum(weights)
        wins = values[0] > max(values[1:])
        return Score(probability, {"probability": probability, "wins": float(wins)})


def _logprobs(model: LanguageModel, inverter: str, pairs: Sequence[tuple[Task, str]]) -> list[list[float]]:
    """Log-probability of each token of the task given the command, for P pairs -> [P][T_p]."""
    prompts = [inverse_prompt(task, command) for task, command in pairs]
    with model.inverter(inverter):
        return model.logprobs(prompts, [task.text for task, _ in pairs])


def mean_logprobs(
    model: LanguageModel, inverter: str, pairs: Sequence[tuple[Task, str]]
) -> dict[tuple[Task, str], float | None]:
    """Pair -> mean log-probability of the task given the command; None for a task without tokens."""
    unique = list(dict.fromkeys(pairs))
    rows = _logprobs(model, inverter, unique)
    return {pair: mean_of_tokens(row) for pair, row in zip(unique, rows, strict=True)}
