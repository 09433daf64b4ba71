"""Inversion rewards: the model that wrote a command says what task it does; how well the task comes back is the reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from envs.domain import load_domain
from envs.types import LanguageModel, Score, Task
from rewards.similarity import Embedder, corrected, neighbour_cosine, read_rating, sequence_ratio, token_overlap

EMPTY = Score(None, reason="empty command")
NOT_READ = Score(None, reason="empty reconstruction")


def _pairs(tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]]) -> list[tuple[Task, str]]:
    return [(task, command) for task, commands in zip(tasks_P, commands_P_G, strict=True) for command in commands]


def _grouped(scores: Sequence[Score], commands_P_G: Sequence[Sequence[str]]) -> list[list[Score]]:
    rest = iter(scores)
    return [[next(rest) for _ in commands] for commands in commands_P_G]


def _inverse_prompt(task: Task, command: str) -> str:
    return load_domain(task.domain).prompt("inverse", command=command)


def reconstruct(model: LanguageModel, pairs: Sequence[tuple[Task, str]], temperature: float, seed: int, max_new_tokens: int) -> list[str]:
    """What the model says that each (task, command) pair's command does, without seeing the task."""
    prompts = [_inverse_prompt(task, command) for task, command in pairs]
    return [row[0].text for row in model.generate(prompts, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)]


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

    def __call__(self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0) -> list[list[Score]]:
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


class SeedBlend:
    """The original experiment's blend, kept for comparison: 0.2 token overlap + 0.3 SequenceMatcher + 0.5 self-rated similarity 0-10.

    One thing differs: where the model's own rating cannot be read, or its reconstruction is empty, this abstains; the original took 0.5.
    """

    def __init__(self, model: LanguageModel, *, inverter: str = "current", temperature: float = 0.3, max_new_tokens: int = 64) -> None:
        self.model, self.inverter, self.temperature, self.max_new_tokens = model, inverter, temperature, max_new_tokens

    def __call__(self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0) -> list[list[Score]]:
        """Scores [P][G], each with its reconstruction and the three parts."""
        pairs = _pairs(tasks_P, commands_P_G)
        readable = [pair for pair in pairs if pair[1].strip()]
        with self.model.inverter(self.inverter):
            texts = reconstruct(self.model, readable, self.temperature, seed, self.max_new_tokens)
            prompts = [
                load_domain(task.domain).prompt("rate", task=task.text, reconstruction=text)
                for (task, _), text in zip(readable, texts, strict=True)
            ]
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

    def __init__(self, model: LanguageModel, *, over: Literal["mean", "min"] = "mean", inverter: str = "current") -> None:
        self.model, self.over, self.inverter = model, over, inverter

    def __call__(self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0) -> list[list[Score]]:
        """Scores [P][G]; `seed` is not used, since nothing is drawn."""
        pairs = _pairs(tasks_P, commands_P_G)
        different = list(dict.fromkeys((task, command) for task, command in pairs if command.strip()))
        with self.model.inverter(self.inverter):
            logprobs = self.model.logprobs([_inverse_prompt(*pair) for pair in different], [task.text for task, _ in different])
        known = {pair: self._score(values) for pair, values in zip(different, logprobs, strict=True)}
        return _grouped([known.get(pair, EMPTY) for pair in pairs], commands_P_G)

    def _score(self, logprobs: Sequence[float]) -> Score:
        if not logprobs:
            return Score(None, reason="empty task")
        if any(map(math.isnan, logprobs)):
            return Score(None, reason="not a number")
        weakest, mean = min(logprobs), math.fsum(logprobs) / len(logprobs)
        parts = {"min": math.exp(weakest), "mean": math.exp(mean)}
        return Score(parts[self.over], parts)
