"""Controls: rewards that know nothing, on the same budget. A useful reward beats them."""

from __future__ import annotations

from collections.abc import Sequence

from envs.streams import stream
from envs.types import Reward, Score, Task
from rewards.base import EMPTY, Ingredients, grouped, pairs_of
from rewards.gates import LONGEST, Gated
from rewards.likelihood import likelihood
from rewards.wrappers import Wrapper


def random(_: Ingredients) -> Reward:
    """Makes the reward `random`."""
    return Random()


def shuffled(given: Ingredients) -> Reward:
    """Makes the reward `shuffled`: the scores of `likelihood`, shuffled."""
    reward = likelihood(given)
    if given.gates:
        reward = Gated(reward)
    return Shuffled(reward)


def length(_: Ingredients) -> Reward:
    """Makes the reward `length`."""
    return Length()


def constant(_: Ingredients) -> Reward:
    """Makes the reward `constant`."""
    return Constant()


class Random:
    """Uniform noise in [0, 1): selection without information."""

    inverter: str | None = None

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G] from the seed and the position alone."""
        rng = stream("random reward", seed)
        scores = []
        for _, command in pairs_of(tasks_P, commands_P_G):
            scores.append(Score(rng.random()) if command.strip() else EMPTY)
        return grouped(scores, commands_P_G)


class Shuffled(Wrapper):
    """The scores of another reward, shuffled over all candidates of a call: its distribution, uninformed.

    Abstentions stay where they are, and empty commands abstain. A single candidate keeps its own score.
    """

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G]."""
        scores: list[Score] = []
        for row in self.reward(tasks_P, commands_P_G, seed=seed):
            scores += row
        for place, (_, command) in enumerate(pairs_of(tasks_P, commands_P_G)):
            if not command.strip():
                scores[place] = EMPTY
        values = [score.value for score in scores if score.value is not None]
        stream("shuffled reward", seed).shuffle(values)
        rest = iter(values)
        dealt = []
        for score in scores:
            if score.value is None:
                dealt.append(Score(None, reason=score.reason))
            else:
                dealt.append(Score(next(rest)))
        return grouped(dealt, commands_P_G)


class Length:
    """Shorter is better: 1 - characters / the longest command that the gates let pass, not below 0."""

    inverter: str | None = None

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G]; `seed` is not used."""
        scores = []
        for _, command in pairs_of(tasks_P, commands_P_G):
            value = max(0.0, 1 - len(command) / LONGEST)
            scores.append(Score(value) if command.strip() else EMPTY)
        return grouped(scores, commands_P_G)


class Constant:
    """1 for every command: all are accepted, which is training on whatever was sampled."""

    inverter: str | None = None

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G]; `seed` is not used."""
        scores = []
        for _, command in pairs_of(tasks_P, commands_P_G):
            scores.append(Score(1.0) if command.strip() else EMPTY)
        return grouped(scores, commands_P_G)
