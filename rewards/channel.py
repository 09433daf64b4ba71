"""The noisy channel: how likely is the task given the command, and the command given the task."""

from __future__ import annotations

import math
from collections.abc import Sequence

from envs.prompts import forward_prompt
from envs.types import LanguageModel, Reward, Score, Task
from rewards.base import EMPTY, NOT_A_NUMBER, Ingredients, different, grouped, mean_of_tokens, pairs_of
from rewards.likelihood import mean_logprobs


def channel(given: Ingredients) -> Reward:
    """Makes the reward `channel`."""
    return Channel(given.model, inverter=given.inverter)


class Channel:
    """The geometric mean of two probabilities per token, of the task and of the command.

        exp((mean log p(task | command) + weight * mean log p(command | task)) / (1 + weight))

    Bayes' rule as in noisy-channel translation (Yee et al. 2019, arXiv:1908.05731), which adds the two with a
    weight that is tuned on labels. Means over tokens are on one scale, so that a weight of 1 needs no tuning.

    The two come from different weights. The task is read by the inverter, as in `Likelihood`. The command is
    scored by `forward`, which is the policy as the run began. It must not be the policy that is trained: that
    would reward its own confidence, which rises with every update whatever it writes.

    In [0, 1]. The parts `inverse` and `forward` are the two probabilities. Abstains as `Likelihood` does.

    Args:
        weight: of the command's term, 0 or more; 0 is `Likelihood`.
        forward: weights that score the command: `start`, `base`, `current` or `ema`.
    """

    def __init__(
        self, model: LanguageModel, *, weight: float = 1.0, forward: str = "start", inverter: str = "current"
    ) -> None:
        if not 0 <= weight < math.inf:
            raise ValueError(f"the weight of the command's term must be 0 or more, not {weight}")
        self.model, self.weight, self.forward, self.inverter = model, weight, forward, inverter

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G]; `seed` is not used."""
        pairs = pairs_of(tasks_P, commands_P_G)
        asked = different(pairs)
        inverse = mean_logprobs(self.model, self.inverter, asked)
        forward = self._of_commands(asked)
        scores = {pair: self._score(inverse[pair], forward[pair]) for pair in asked}
        return grouped([scores.get(pair, EMPTY) for pair in pairs], commands_P_G)

    def _of_commands(self, pairs: Sequence[tuple[Task, str]]) -> dict[tuple[Task, str], float | None]:
        """Pair -> mean log-probability of the command's tokens given the task, without an end of sequence."""
        prompts = [forward_prompt(task) for task, _ in pairs]
        with self.model.inverter(self.forward):
            rows = self.model.logprobs(prompts, [command for _, command in pairs])
        return {pair: mean_of_tokens(row) for pair, row in zip(pairs, rows, strict=True)}

    def _score(self, inverse: float | None, forward: float | None) -> Score:
        if inverse is None or forward is None or math.isnan(inverse + forward):
            return NOT_A_NUMBER
        parts = {"inverse": math.exp(inverse), "forward": math.exp(forward)}
        share = 1 / (1 + self.weight)
        return Score(parts["inverse"] ** share * parts["forward"] ** (1 - share), parts)
