"""Rewards that reconstruct the task: the model says what a command does, which is compared with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from envs.answers import first_line
from envs.prompts import inverse_prompt, rate_prompt
from envs.types import LanguageModel, Reward, Score, Task
from rewards.base import EMPTY, Ingredients, grouped, pairs_of
from rewards.embedding import Embedder, corrected, embedder_of, neighbour_cosine
from rewards.text import f1, read_rating, sequence_ratio, token_overlap, values_of

NO_RECONSTRUCTION = Score(None, reason="empty reconstruction")


def similarity(given: Ingredients) -> Reward:
    """Makes the reward `similarity`; InputError for an unknown embedder, or too few tasks in the pool."""
    pool = [task.text for task in given.pool]
    temperature = given.inverse_temperature
    return Similarity(given.model, embedder_of(given), pool, inverter=given.inverter, temperature=temperature)


def original_blend(given: Ingredients) -> Reward:
    """Makes the reward `original-blend`."""
    return OriginalBlend(given.model, inverter=given.inverter, temperature=given.inverse_temperature)


def slots(given: Ingredients) -> Reward:
    """Makes the reward `slots`."""
    return Slots(given.model, inverter=given.inverter, temperature=given.inverse_temperature)


def reconstruct(
    model: LanguageModel,
    pairs: Sequence[tuple[Task, str]],
    temperature: float,
    seed: int,
    max_new_tokens: int,
) -> list[str]:
    """What the model says that the command of each (task, command) pair does. It does not see the task."""
    prompts = [inverse_prompt(task, command) for task, command in pairs]
    written = model.generate(prompts, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)
    return [first_line(row[0].text) for row in written]


class Reconstructing:
    """What the rewards that decode a reconstruction share. They abstain where it or the command is empty.

    Args:
        model: reconstructs.
        inverter: with these weights: `current`, `base` or `ema`.
        temperature: of sampling; 0 is greedy.
        max_new_tokens: longest reconstruction.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        inverter: str = "current",
        temperature: float = 0.3,
        max_new_tokens: int = 64,
    ) -> None:
        self.model = model
        self.inverter = inverter
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens

    def _reconstructions(self, pairs: Sequence[tuple[Task, str]], seed: int) -> list[str]:
        """One for each pair, empty for an empty command. To be called as the inverter."""
        readable = [pair for pair in pairs if pair[1].strip()]
        texts = reconstruct(self.model, readable, self.temperature, seed, self.max_new_tokens)
        rest = iter(texts)
        reconstructions = []
        for _, command in pairs:
            reconstructions.append(next(rest) if command.strip() else "")
        return reconstructions


class Embedding(Reconstructing):
    """What rewards that embed reconstructions have in common: a scale whose zero is the nearest other task.

    Args:
        pool: texts of tasks; `floor` is the mean cosine of one to its nearest other (see `neighbour_cosine`).
    """

    name: ClassVar[str]  # of the reward, for messages

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
        super().__init__(model, inverter=inverter, temperature=temperature, max_new_tokens=max_new_tokens)
        self.embedder = embedder
        self.floor = neighbour_cosine(embedder, pool, self.name)


class Similarity(Embedding):
    """The cosine of the task's embedding to the reconstruction's, on a corrected scale.

        (cosine - c0) / (1 - c0), clipped to [0, 1]

    c0 is the mean cosine of a task in `pool` to its nearest other task (see `neighbour_cosine`). 0 means "as
    far as the task that it is most easily confused with", 1 means "word for word".
    """

    name = "similarity"

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G], each with its reconstruction."""
        pairs = pairs_of(tasks_P, commands_P_G)
        with self.model.inverter(self.inverter):
            reconstructions = self._reconstructions(pairs, seed)
        if not pairs:
            return grouped([], commands_P_G)
        vectors = self.embedder([task.text for task, _ in pairs] + reconstructions)
        of_tasks, of_reconstructions = vectors[: len(pairs)], vectors[len(pairs) :]
        scores = []
        for row, text in enumerate(reconstructions):
            if not pairs[row][1].strip():
                scores.append(EMPTY)
            elif not text.strip():
                scores.append(NO_RECONSTRUCTION)
            else:
                cosine = float(of_tasks[row] @ of_reconstructions[row])
                scores.append(Score(corrected(cosine, self.floor), {"cosine": cosine}, text))
        return grouped(scores, commands_P_G)


class OriginalBlend(Reconstructing):
    """The score of the original experiment, a blend of words, characters and the model's own rating.

        0.2 token overlap + 0.3 SequenceMatcher + 0.5 rating of similarity, 0-10

    One thing differs: this abstains where the rating cannot be read or the reconstruction is empty. The
    original took 0.5.
    """

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G], each with its reconstruction and its three parts."""
        pairs = pairs_of(tasks_P, commands_P_G)
        with self.model.inverter(self.inverter):
            reconstructions = self._reconstructions(pairs, seed)
            replies = iter(self._ratings(pairs, reconstructions))
        scores = []
        for (task, command), text in zip(pairs, reconstructions, strict=True):
            if not command.strip():
                scores.append(EMPTY)
            elif not text.strip():
                scores.append(NO_RECONSTRUCTION)
            else:
                scores.append(self._score(task, text, read_rating(next(replies))))
        return grouped(scores, commands_P_G)

    def _ratings(self, pairs: Sequence[tuple[Task, str]], reconstructions: Sequence[str]) -> list[str]:
        """The model's ratings of how similar each reconstruction is to its task, without empty ones."""
        prompts = []
        for (task, _), text in zip(pairs, reconstructions, strict=True):
            if text.strip():
                prompts.append(rate_prompt(task, text))
        replies = self.model.generate(prompts, temperature=0.0, max_new_tokens=8)
        return [first_line(row[0].text) for row in replies]

    @staticmethod
    def _score(task: Task, text: str, rating: float | None) -> Score:
        parts = {"overlap": token_overlap(task.text, text), "sequence": sequence_ratio(task.text, text)}
        if rating is None:
            return Score(None, parts, text, reason="unreadable rating")
        value = 0.2 * parts["overlap"] + 0.3 * parts["sequence"] + 0.5 * rating
        return Score(value, {**parts, "rating": rating}, text)


class Slots(Reconstructing):
    """F1 of the values in the task and in the reconstruction (see `values_of`), and nothing but the values.

    Blind to what is done with the values, so it is best blended with a reward that is not. Abstains where the
    task has no value.
    """

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G], each with its reconstruction."""
        pairs = pairs_of(tasks_P, commands_P_G)
        wanted = {task: values_of(task.text) for task in tasks_P}
        asked = [pair for pair in pairs if wanted[pair[0]]]
        with self.model.inverter(self.inverter):
            reconstructions = iter(self._reconstructions(asked, seed))
        scores = []
        for task, command in pairs:
            text = ""
            if wanted[task]:
                text = next(reconstructions)
            if not command.strip():
                scores.append(EMPTY)
            elif not wanted[task]:
                scores.append(Score(None, reason="no value in the task"))
            elif not text.strip():
                scores.append(NO_RECONSTRUCTION)
            else:
                scores.append(Score(f1(wanted[task], values_of(text)), {}, text))
        return grouped(scores, commands_P_G)
