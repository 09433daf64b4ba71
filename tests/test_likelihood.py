"""Rewards by the likelihood of the task: likelihood, lift, choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scripted import DOMAIN, FOREIGN, OTHER, READ, RIGHT, SWAPPED, TASK, Scripted, build, value

from envs.types import LanguageModel, Score, Task
from rewards.likelihood import Choice, Likelihood


class NoNumbers(Scripted):
    """Log-probabilities that are not numbers, for two commands; the third has an impossible token."""

    def logprobs(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[list[float]]:
        rows = [[-1.0, math.nan], [math.nan, -1.0], [-math.inf, -1.0]]
        return [rows[place % 3] for place in range(len(prompts))]


def test_likelihood_by_hand() -> None:
    model = Scripted({RIGHT: TASK.text, SWAPPED: "scan port 80"})  # `scan` and `port` of 7 words
    mean = (0.9**2 * 0.1**5) ** (1 / 7)
    cases: list[tuple[Any, list[float]]] = [("min", [0.9, 0.1]), ("mean", [0.9, mean])]
    for over, wanted in cases:
        [scores] = Likelihood(model, over=over)([TASK], [[RIGHT, SWAPPED]])
        assert [value(score) for score in scores] == pytest.approx(wanted)
        assert scores[1].parts == pytest.approx({"token_min": 0.1, "token_mean": mean})
        assert scores[0].reconstruction is None


def test_likelihood_of_duplicates_is_computed_once() -> None:
    model = Scripted(READ)
    [first, second] = Likelihood(model)([TASK, OTHER], [[RIGHT, SWAPPED, RIGHT], [RIGHT, RIGHT]])
    assert len(model.asked) == 3
    assert first[0] == first[2] != second[0] == second[1]


def test_likelihood_of_nothing_or_of_no_number_abstains() -> None:
    model = Scripted(READ)
    assert Likelihood(model)([Task("t/0", "network", "")], [[RIGHT]]) == [[Score(None, reason="empty task")]]
    [scores] = Likelihood(NoNumbers(READ))([TASK], [[RIGHT, SWAPPED, FOREIGN]])
    assert [score.value for score in scores] == [None, None, 0.0]
    assert scores[0].reason == "not a number"


def test_likelihood_on_a_policy_by_hand(policy: LanguageModel) -> None:
    [[score]] = Likelihood(policy)([TASK], [[RIGHT]])
    [values] = policy.logprobs([DOMAIN.prompt("inverse", command=RIGHT)], [TASK.text])
    assert score.value == pytest.approx(math.exp(np.mean(values)))
    assert score.parts["token_min"] == pytest.approx(math.exp(min(values)))


def test_lift_by_hand() -> None:
    model = Scripted(READ)  # given no command, `of a` is expected: no word of the task
    [[right, swapped]] = build("lift", model)([TASK], [[RIGHT, SWAPPED]])
    assert value(right) == pytest.approx(math.log(0.9) - math.log(0.1))
    assert value(swapped) == pytest.approx((6 * math.log(0.9) + math.log(0.1)) / 7 - math.log(0.1))
    assert right.parts == pytest.approx({"given": math.log(0.9), "prior": math.log(0.1)})
    assert model.asked.count(DOMAIN.prompt("inverse", command="")) == 1


def test_choice_by_hand() -> None:
    other = Task("x", "network", "scan port 80 on web1.test with nmap", "nmap")
    reward = Choice(Scripted(READ), [other, TASK], others=1)
    [[right, swapped, foreign]] = reward([TASK], [[RIGHT, SWAPPED, FOREIGN]])
    wanted = 0.9 / (0.9 + (0.9**6 * 0.1) ** (1 / 7))
    assert right.parts == pytest.approx({"probability": wanted, "wins": 1.0})
    assert value(right) == pytest.approx(wanted)
    assert value(swapped) == pytest.approx(1 - wanted)
    assert swapped.parts["wins"] == 0.0
    assert value(foreign) == pytest.approx(0.5)
    assert foreign.parts["wins"] == 0.0  # neither


def test_choice_takes_other_tasks_of_the_tool_then_of_the_domain() -> None:
    scans = [Task(f"{n}", "network", f"scan {n}", "nmap") for n in range(9)]
    digs = [Task(f"d{n}", "network", f"dig {n}", "dig") for n in range(3)]
    sorts = [Task(f"s{n}", "shell", f"sort {n}", "nmap") for n in range(9)]
    choice = Choice(Scripted(READ), [*scans, *digs, *sorts])
    drawn = choice.distractors(scans[0], 0)
    assert len(set(drawn)) == 4
    assert set(drawn) < set(scans[1:])
    assert drawn == choice.distractors(scans[0], 0)
    assert any(drawn != choice.distractors(scans[0], seed) for seed in range(1, 9))
    few = choice.distractors(digs[0], 0)
    assert len(set(few)) == 4
    assert {digs[1], digs[2]} < set(few)
    assert {task.domain for task in few} == {"network"}
    assert len(choice.distractors(Task("n", "network", "scan 1", ""), 0)) == 4


def test_choice_abstains_without_another_task() -> None:
    [[alone, empty]] = Choice(Scripted(READ), [TASK])([TASK], [[RIGHT, ""]])
    assert alone == Score(None, reason="no other task to choose from")
    assert empty.reason == "empty command"


@pytest.mark.parametrize("name", ["lift", "choice"])
def test_no_number_abstains(name: str) -> None:
    [[score]] = build(name, NoNumbers(READ))([TASK], [[RIGHT]])
    assert score == Score(None, reason="not a number")
