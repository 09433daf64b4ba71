"""Controls: rewards that know nothing, on the same budget. A reward that does not beat them has shown nothing."""

from __future__ import annotations

from collections.abc import Sequence

from envs.streams import stream
from envs.types import Reward, Score, Task
from rewards.base import EMPTY, Ingredients
from rewards.gates import LONGEST, Gated
from rewards.inversion import likelihood
from rewards.wrappers import Wrapper


def random(_: Ingredients) -> Reward:
    """Makes the reward `random`."""
    return Random()


def shuffled(given: Ingredients) -> Reward:
    """Makes the reward `shuffled`: the scores of `likelihood`, shuffled."""
    reward: Reward = likelihood(given)
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
        groups = zip(tasks_P, commands_P_G, strict=True)
        return [
            [Score(rng.random()) if command.strip() else EMPTY for command in commands]
            for _, commands in groups
        ]


class Shuffled(Wrapper):
    """The scores of another reward, dealt out anew over all candidates of a call: its distribution without its information.

    Who abstains stays as it is. A call with one candidate has nothing to shuffle: it gives that candidate its own score.
    """

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G]."""
        scores_P_G = self.reward(tasks_P, commands_P_G, seed=seed)
        values = [score.value for row in scores_P_G for score in row if score.value is not None]
        stream("shuffled reward", seed).shuffle(values)
        rest = iter(values)
        return [
            [Score(None, reason=score.reason) if score.value is None else Score(next(rest)) for score in row]
            for row in scores_P_G
        ]


class Length:
    """Shorter is better: 1 less the characters' share of the longest command that the gates let pass, not below 0."""

    inverter: str | None = None

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G]; `seed` is not used."""
        groups = zip(tasks_P, commands_P_G, strict=True)
        return [
            [Score(max(0.0, 1 - len(command) / LONGEST)) if command.strip() else EMPTY for command in row]
            for _, row in groups
        ]


class Constant:
    """1 for every command: all are accepted alike, which is training on whatever was sampled."""

    inverter: str | None = None

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G]; `seed` is not used."""
        groups = zip(tasks_P, commands_P_G, strict=True)
        return [[Score(1.0) if command.strip() else EMPTY for command in row] for _, row in groups]
