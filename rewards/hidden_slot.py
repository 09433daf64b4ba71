"""The reward `hidden-slot`: a value of the task is hidden and the rest shown. Does the command tell it?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from envs.prompts import inverse_prompt
from envs.types import LanguageModel, Reward, Score, Task
from rewards.base import EMPTY, NOT_A_NUMBER, Ingredients, different, grouped, pairs_of
from rewards.text import value_spans

Asked = tuple[Task, str, str]  # a task, a command, a text


def hidden_slot(given: Ingredients) -> Reward:
    """Makes the reward `hidden-slot`."""
    return HiddenSlot(given.model, inverter=given.inverter)


class Gap(NamedTuple):
    """A value of a task: the task up to it, and up to its end. Both end where a word ends."""

    before: str
    through: str


def gaps(text: str) -> list[Gap]:
    """Each different value of a task where it comes first: later it would be shown already."""
    found: dict[str, Gap] = {}
    for start, end in value_spans(text):
        before = text[:start].rpartition(" ")[0]
        rest = text[end:].partition(" ")[0]  # a closing quote, a comma
        found.setdefault(text[start:end], Gap(before, text[:end] + rest))
    return list(found.values())


class HiddenSlot:
    """The probability that the model names a hidden value of the task, given the command and what is shown.

        mean over the task's values v of p(v | command, the task before v)

    This is the dual task of DuPO (She et al. 2025, arXiv:2508.14460): the unknown part of the input is
    reconstructed from the output and the known part. Three things differ. The paper hides one part; here each
    value is hidden in turn, which is the expectation of that. It decodes the hidden part and compares; here
    the probability is read, and nothing is decoded. It shows all the rest; here what comes before the value
    is shown, so that the prompt is the one that the model knows.

    In [0, 1]. Blind to what is done with the values. A longer value that begins with the hidden one passes
    for it (8080 for 80). Abstains where the task has no value.
    """

    def __init__(self, model: LanguageModel, *, inverter: str = "current") -> None:
        self.model, self.inverter = model, inverter

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G]; `seed` is not used."""
        pairs = pairs_of(tasks_P, commands_P_G)
        gaps_of = {task: gaps(task.text) for task in tasks_P}
        asked: dict[Asked, None] = {}
        for task, command in different(pairs):
            for gap in gaps_of[task]:
                asked[task, command, gap.before] = asked[task, command, gap.through] = None
        sums = self._sums(list(asked))
        scores = []
        for task, command in pairs:
            if not command.strip():
                scores.append(EMPTY)
            elif not gaps_of[task]:
                scores.append(Score(None, reason="no value in the task"))
            else:
                values = []
                for gap in gaps_of[task]:
                    values.append(sums[task, command, gap.through] - sums[task, command, gap.before])
                scores.append(self._score(values))
        return grouped(scores, commands_P_G)

    def _sums(self, asked: Sequence[Asked]) -> dict[Asked, float]:
        """Log-probability of each text, which is a beginning of the task, given the command."""
        prompts = [inverse_prompt(task, command) for task, command, _ in asked]
        with self.model.inverter(self.inverter):
            rows = self.model.logprobs(prompts, [text for _, _, text in asked])
        return {key: math.fsum(row) for key, row in zip(asked, rows, strict=True)}

    @staticmethod
    def _score(logprobs: Sequence[float]) -> Score:
        """From the log-probability of each value."""
        if any(math.isnan(value) for value in logprobs):
            return NOT_A_NUMBER
        # Two passes over the same tokens may differ in the last bits.
        probabilities = [math.exp(min(value, 0.0)) for value in logprobs]
        parts = {"weakest": min(probabilities)}
        return Score(math.fsum(probabilities) / len(probabilities), parts)
