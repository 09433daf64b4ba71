"""Descriptions of commands: which commands are described, and how a description is scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from agents.rejection_sft import select
from agents.training.inverse import described
from agents.training.rollouts import Rollout
from envs.prompts import forward_prompt, inverse_prompt
from envs.types import Completion, Prompt, Score, Task

HIDDEN = "the text of the task, which the model must not be shown"
COUNT, LIST = "wc -l a.txt", "ls -l"


class Describer:
    """Says of each command what the table has, and gives the tokens of a command the probabilities in it."""

    def __init__(self, table: dict[str, dict[str, list[float]]]) -> None:
        self.table = table
        self.asked: list[str] = []

    def generate(self, prompts: Sequence[Prompt], n: int, **_: Any) -> list[list[Completion]]:
        self.asked += [prompt.text for prompt in prompts]
        rows = []
        for prompt in prompts:
            [command] = [one for one in self.table if inverse_prompt(task(HIDDEN), one) == prompt]
            rows.append([Completion(text, truncated=text.endswith("...")) for text in self.table[command]])
            assert len(rows[-1]) == n
        return rows

    def logprobs(self, prompts: Sequence[Prompt], commands: Sequence[str]) -> list[list[float]]:
        rows = []
        for prompt, command in zip(prompts, commands, strict=True):
            [tokens] = [
                tokens for text, tokens in self.table[command].items() if forward_prompt(task(text)) == prompt
            ]
            rows.append([math.log(token) for token in tokens])
        return rows


def task(text: str) -> Task:
    return Task("t", "shell", text)


def test_by_hand() -> None:
    """Each command once; the geometric mean of its tokens; nothing for what is empty, cut, or holds it."""
    model: Any = Describer(
        {
            COUNT: {
                "count the lines of a.txt": [0.5, 0.125],
                "count lines": [0.1],
                "Run WC -L a.txt now": [0.9],
            },
            LIST: {"list the files": [0.9, 0.9], "": [], "list the files and then...": [0.9]},
        }
    )
    chosen = [Rollout(task(HIDDEN), Completion(command), Score(1.0)) for command in (COUNT, LIST, COUNT)]
    groups = described(model, chosen, candidates=3, temperature=0.7, seed=1)
    assert [[one.command for one in group] for group in groups] == [[COUNT] * 3, [LIST] * 3]
    assert [one.task.text for one in groups[0]] == list(model.table[COUNT])
    assert [one.score.value for one in groups[0]] == [pytest.approx(0.25), pytest.approx(0.1), None]
    assert [one.score.value for one in groups[1]] == [pytest.approx(0.9), None, None]
    reasons = [one.score.reason for group in groups for one in group if one.score.value is None]
    assert reasons == ["holds the command", "empty description", "truncated description"]
    assert not any(HIDDEN in text for text in model.asked)
    # The best of each command, and of these the better half.
    assert select([[one.score.value for one in group] for group in groups], "best", 0.0, 0.5) == [3]


def test_without_an_accepted_command_nothing_is_described() -> None:
    model: Any = Describer({})
    assert described(model, [], candidates=3, temperature=0.7, seed=1) == []
