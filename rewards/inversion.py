"""Inversion rewards: the model that wrote a command says what task it does; how well the task comes back is the reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from envs.prompts import inverse_prompt, rate_prompt
from envs.streams import stream
from envs.types import LanguageModel, Reward, Score, Task
from rewards.base import EMPTY, Ingredients
from rewards.similarity import (
    Embedder,
    corrected,
    neighbour_cosine,
    read_rating,
    sequence_ratio,
    token_overlap,
)
from rewards.words import f1, values_of

NOT_READ = Score(None, reason="empty reconstruction")


def _pairs(tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]]) -> list[tuple[Task, str]]:
    return [
        (task, command) for task, commands in zip(tasks_P, commands_P_G, strict=True) for command in commands
    ]


def _grouped(scores: Sequence[Score], commands_P_G: Sequence[Sequence[str]]) -> list[list[Score]]:
    rest = iter(scores)
    return [[next(rest) for _ in commands] for commands in commands_P_G]


def similarity(given: Ingredients) -> Reward:
    """Makes the reward `similarity`; InputError for a pool without two different tasks, or an unknown embedder."""
    texts = [task.text for task in given.pool]
    embedder = Embedder(given.embedder)
    temperature = given.inverse_temperature
    return Similarity(given.model, embedder, texts, inverter=given.inverter, temperature=temperature)


def original_blend(given: Ingredients) -> Reward:
    """Makes the reward `original-blend`."""
    return OriginalBlend(given.model, inverter=given.inverter, temperature=given.inverse_temperature)


def slots(given: Ingredients) -> Reward:
    """Makes the reward `slots`."""
    return Slots(given.model, inverter=given.inverter, temperature=given.inverse_temperature)


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


def reconstruct(
    model: LanguageModel,
    pairs: Sequence[tuple[Task, str]],
    temperature: float,
    seed: int,
    max_new_tokens: int,
) -> list[str]:
    """What the model says that each (task, command) pair's command does, without seeing the task."""
    prompts = [inverse_prompt(task, command) for task, command in pairs]
    return [
        row[0].text
        for row in model.generate(prompts, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)
    ]


class Similarity:
    """Decode the task from the command and compare embeddings: (cosine - c0) / (1 - c0), clipped to [0, 1].

    c0 is the mean cosine of a task to its nearest other one in `pool` (see `neighbour_cosine`): 0 says "as far off as the most
    confusable other task", 1 "word for word". Abstains where the command or its reconstruction is empty.
    """

    def __init__(
        self,
        model: LanguageModel,
        embedder: Embedder,
        pool: Sequence[str],
        *,
        inverter: str = "current",
        temperature: float = 0.3,
        max_new_tokens: int = 64,
    ) -> None:
        self.model, self.embedder = model, embedder
        self.inverter, self.temperature, self.max_new_tokens = inverter, temperature, max_new_tokens
        self.floor = neighbour_cosine(embedder, pool)

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G], each with its reconstruction."""
        pairs = _pairs(tasks_P, commands_P_G)
        readable = [pair for pair in pairs if pair[1].strip()]
        with self.model.inverter(self.inverter):
            texts = iter(reconstruct(self.model, readable, self.temperature, seed, self.max_new_tokens))
        reconstructions = [next(texts) if command.strip() else "" for _, command in pairs]
        if not pairs:
            return _grouped([], commands_P_G)
        vectors = self.embedder([task.text for task, _ in pairs] + reconstructions)
        scores = []
        for row, ((_, command), text) in enumerate(zip(pairs, reconstructions, strict=True)):
            if not text.strip():
                scores.append(NOT_READ if command.strip() else EMPTY)
                continue
            cosine = float(vectors[row] @ vectors[len(pairs) + row])
            scores.append(Score(corrected(cosine, self.floor), {"cosine": cosine}, text))
        return _grouped(scores, commands_P_G)


class OriginalBlend:
    """The original experiment's blend, kept for comparison: 0.2 token overlap + 0.3 SequenceMatcher + 0.5 self-rated similarity 0-10.

    One thing differs: where the model's own rating cannot be read, or its reconstruction is empty, this abstains; the original took 0.5.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        inverter: str = "current",
        temperature: float = 0.3,
        max_new_tokens: int = 64,
    ) -> None:
        self.model, self.inverter, self.temperature, self.max_new_tokens = (
            model,
            inverter,
            temperature,
            max_new_tokens,
        )

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G], each with its reconstruction and the three parts."""
        pairs = _pairs(tasks_P, commands_P_G)
        readable = [pair for pair in pairs if pair[1].strip()]
        with self.model.inverter(self.inverter):
            texts = reconstruct(self.model, readable, self.temperature, seed, self.max_new_tokens)
            prompts = [rate_prompt(task, text) for (task, _), text in zip(readable, texts, strict=True)]
            replies = [row[0].text for row in self.model.generate(prompts, temperature=0.0, max_new_tokens=8)]
        rest = iter(zip(texts, replies, strict=True))
        scores = []
        for task, command in pairs:
            if not command.strip():
                scores.append(EMPTY)
                continue
            text, reply = next(rest)
            if not text.strip():
                scores.append(NOT_READ)
                continue
            rating = read_rating(reply)
            parts = {"overlap": token_overlap(task.text, text), "sequence": sequence_ratio(task.text, text)}
            if rating is None:
                scores.append(Score(None, parts, text, reason="unreadable rating"))
            else:
                value = 0.2 * parts["overlap"] + 0.3 * parts["sequence"] + 0.5 * rating
                scores.append(Score(value, {**parts, "rating": rating}, text))
        return _grouped(scores, commands_P_G)


class Likelihood:
    """How likely is the task given the command: exp of the log-probability of its tokens, the `mean` or the `min` over them.

    One forward pass, nothing decoded. This is the reconstruction term of round-trip correctness (Allamanis et al. 2024) read as a
    probability. The weakest token finds the one wrong flag or digit that a mean washes out; but where the wording itself is new
    to the model, the weakest token is that wording, whatever the command. Abstains where the command or the task is empty, and
    where a log-probability is not a number.
    """

    def __init__(
        self, model: LanguageModel, *, over: Literal["mean", "min"] = "mean", inverter: str = "current"
    ) -> None:
        self.model, self.over, self.inverter = model, over, inverter

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G]; `seed` is not used, since nothing is drawn."""
        pairs = _pairs(tasks_P, commands_P_G)
        different = list(dict.fromkeys((task, command) for task, command in pairs if command.strip()))
        with self.model.inverter(self.inverter):
            logprobs = self.model.logprobs(
                [inverse_prompt(*pair) for pair in different], [task.text for task, _ in different]
            )
        known = {pair: self._score(values) for pair, values in zip(different, logprobs, strict=True)}
        return _grouped([known.get(pair, EMPTY) for pair in pairs], commands_P_G)

    def _score(self, logprobs: Sequence[float]) -> Score:
        if not logprobs:
            return Score(None, reason="empty task")
        if any(map(math.isnan, logprobs)):
            return Score(None, reason="not a number")
        weakest, mean = min(logprobs), math.fsum(logprobs) / len(logprobs)
        parts = {"token_min": math.exp(weakest), "token_mean": math.exp(mean)}
        return Score(parts[f"token_{self.over}"], parts)


class Lift:
    """How much likelier the command makes the task: its mean log-probability given the command less that given none, nats per token.

    The second term takes out what is likely in any case, the wording: pointwise mutual information per token, as in mutual-information
    decoding (Li et al. 2016, arXiv:1510.03055). "None" is the inverse prompt with an empty command, computed once for each task of a call.
    Not bounded; below 0 where the command makes the task less likely. Abstains as `Likelihood` does.
    """

    def __init__(self, model: LanguageModel, *, inverter: str = "current") -> None:
        self.model, self.inverter = model, inverter

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G]; `seed` is not used."""
        pairs = _pairs(tasks_P, commands_P_G)
        different = list(dict.fromkeys((task, command) for task, command in pairs if command.strip()))
        asked = list(dict.fromkeys([*different, *((task, "") for task, _ in different)]))
        means = dict(
            zip(
                asked,
                _mean_logprobs(self.model, self.inverter, [(command, task) for task, command in asked]),
                strict=True,
            )
        )
        known = {pair: self._score(means[pair], means[pair[0], ""]) for pair in different}
        return _grouped([known.get(pair, EMPTY) for pair in pairs], commands_P_G)

    @staticmethod
    def _score(given: float | None, prior: float | None) -> Score:
        if given is None or prior is None or not math.isfinite(given - prior):
            return Score(None, reason="not a number")
        return Score(given - prior, {"given": given, "prior": prior})


class Choice:
    """Which task is it? The probability of the true one among it and `others` tasks of its tool, by a softmax over mean log-likelihoods.

    The other tasks come from `pool`, drawn anew for each task and seed, the same for all candidates of a task; none has the task's text.
    Where the task names no tool, or the pool has too few tasks of it, those of its domain serve. Chance is 1 / (others + 1).
    Abstains as `Likelihood` does, and where the pool has no other task of the domain.
    """

    def __init__(
        self, model: LanguageModel, pool: Sequence[Task], *, others: int = 4, inverter: str = "current"
    ) -> None:
        self.model, self.others, self.inverter = model, others, inverter
        self.pool = sorted({task.text: task for task in pool}.values(), key=lambda task: task.text)

    def distractors(self, task: Task, seed: int) -> list[Task]:
        """The other tasks, `others` of them or as many as there are."""
        near = [other for other in self.pool if other.domain == task.domain and other.text != task.text]
        same = [other for other in near if task.tool and other.tool == task.tool]
        rng = stream("choice", seed, task.domain, task.text)
        drawn = rng.sample(same, min(self.others, len(same)))
        rest = [other for other in near if other not in drawn]
        return drawn + rng.sample(rest, min(self.others - len(drawn), len(rest)))

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G] with `wins`: 1 where the true task is the likeliest."""
        pairs = _pairs(tasks_P, commands_P_G)
        options = {task: [task, *self.distractors(task, seed)] for task in dict.fromkeys(tasks_P)}
        different = list(
            dict.fromkeys(
                (task, command) for task, command in pairs if command.strip() and len(options[task]) > 1
            )
        )
        asked = list(
            dict.fromkeys((command, option) for task, command in different for option in options[task])
        )
        means = dict(zip(asked, _mean_logprobs(self.model, self.inverter, asked), strict=True))
        known = {
            (task, command): self._score([means[command, option] for option in options[task]])
            for task, command in different
        }
        alone = Score(None, reason="no other task to choose from")
        return _grouped(
            [known.get(pair, alone if pair[1].strip() else EMPTY) for pair in pairs], commands_P_G
        )

    @staticmethod
    def _score(means: Sequence[float | None]) -> Score:
        values = [mean for mean in means if mean is not None and not math.isnan(mean)]
        if len(values) < len(means) or max(values) == -math.inf:
            return Score(None, reason="not a number")
        weights = [math.exp(value - max(values)) for value in values]
        probability = weights[0] / math.fsum(weights)
        return Score(probability, {"probability": probability, "wins": float(values[0] > max(values[1:]))})


class Slots:
    """Decode the task from the command and compare the values alone (see `values_of`): F1 of what the two sentences carry word for word.

    Blind to what is done with the values, and so best blended with a reward that is not. Abstains where the task has no value, and where
    the command or its reconstruction is empty.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        inverter: str = "current",
        temperature: float = 0.3,
        max_new_tokens: int = 64,
    ) -> None:
        self.model, self.inverter, self.temperature, self.max_new_tokens = (
            model,
            inverter,
            temperature,
            max_new_tokens,
        )

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G], each with its reconstruction."""
        pairs = _pairs(tasks_P, commands_P_G)
        wanted = {task: values_of(task.text) for task in dict.fromkeys(tasks_P)}
        readable = [(task, command) for task, command in pairs if command.strip() and wanted[task]]
        with self.model.inverter(self.inverter):
            texts = iter(reconstruct(self.model, readable, self.temperature, seed, self.max_new_tokens))
        scores = []
        for task, command in pairs:
            if not command.strip() or not wanted[task]:
                scores.append(Score(None, reason="no value in the task") if command.strip() else EMPTY)
                continue
            text = next(texts)
            scores.append(Score(f1(wanted[task], values_of(text)), {}, text) if text.strip() else NOT_READ)
        return _grouped(scores, commands_P_G)


def _mean_logprobs(
    model: LanguageModel, inverter: str, pairs: Sequence[tuple[str, Task]]
) -> list[float | None]:
    """Mean log-probability of each task given the command before it; None of a task without tokens."""
    with model.inverter(inverter):
        rows = model.logprobs(
            [inverse_prompt(task, command) for command, task in pairs], [task.text for _, task in pairs]
        )
    return [math.fsum(row) / len(row) if row else None for row in rows]
