"""Intrinsic rivals, controls and the labelled upper bound."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from references import reference
from scripted import DOMAIN, FOREIGN, OTHER, READ, RIGHT, SWAPPED, TASK, Scripted, build, texts_of, value

from envs.types import InputError, Score, Task
from rewards.controls import Random, Shuffled
from rewards.intrinsic import SelfJudge
from rewards.labelled import Truth
from rewards.likelihood import Likelihood
from rewards.registry import make_reward
from rewards.wrappers import inverter_of


def test_certainty_on_a_policy_by_hand(policy: Any) -> None:
    """Entropy and self-certainty of the forward prompt's distributions, token by token."""
    prompt = DOMAIN.prompt("forward", task=TASK.text, tool=TASK.tool)
    [prompt_ids], [ids] = policy.prompt_ids([prompt]), policy.completion_ids([RIGHT])
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([[*prompt_ids, *ids]])).logits
    p = logits[0, len(prompt_ids) - 1 : -1].float().softmax(-1)
    entropy = -(p * p.log()).sum(-1).mean()
    uniform = torch.full_like(p, 1 / p.shape[-1])
    certainty = (uniform * (uniform.log() - p.log())).sum(-1).mean()
    for name, wanted in (("entropy", -entropy), ("self-certainty", certainty)):
        reward = make_reward(name, policy, [])
        [[score, other]] = reward([TASK], [[RIGHT, SWAPPED]])
        assert value(score) == pytest.approx(float(wanted), rel=1e-4)
        assert value(other) != value(score)
        assert inverter_of(reward) is None
    assert policy.entropies([prompt], [""]) == [None] and policy.entropies([], []) == []


def test_entropies_do_not_depend_on_the_batch(policy: Any) -> None:
    prompts, texts = [f"task {n}" for n in range(5)], [RIGHT, "", SWAPPED, "x" * 50, FOREIGN]
    whole = policy.entropies(prompts, texts)
    policy.batch_sizes = {"writing": 2, "scoring": 2}
    for first, second in zip(whole, policy.entropies(prompts, texts), strict=True):
        assert first == (second if second is None else pytest.approx(second, rel=1e-3, abs=1e-5))


def test_majority_by_hand() -> None:
    [scores] = build("majority", Scripted(READ))([TASK], [["ls  -l", "ls -l", "ls", " "]])
    assert [score.value for score in scores] == [0.5, 0.5, 0.25, None]
    with pytest.raises(ValueError, match="two or more candidates"):
        build("majority", Scripted(READ))([TASK], [["ls"]])


def test_majority_by_what_commands_do_by_hand() -> None:
    """Two pairs are the same effect in other words; a command that fails does not agree with another one."""
    asked = []

    def effects(domain: str, commands: Sequence[str]) -> list[str] | None:
        asked.append((domain, list(commands)))
        return {"network": ["list", "list", "", "list", ""], "shell": None}[domain]

    reward = make_reward("majority-effect", Scripted(READ), [], gates=False, effects=effects)
    in_shell = Task("t/3", "shell", "list the files")
    commands = ["ls", "ls  .", "lss", " ", "ls -C", "lsss"]
    known, unknown = reward([TASK, in_shell], [commands, ["ls", ""]])
    assert [score.value for score in known] == [0.5, 0.5, 0.0, None, 0.5, 0.0]
    assert known[2].reason == "fails, or nothing shows" and known[3].reason == "empty command"
    assert unknown == [Score(None, reason="cannot be executed here"), Score(None, reason="empty command")]
    assert asked == [("network", ["ls", "ls  .", "lss", "ls -C", "lsss"]), ("shell", ["ls"])]  # as written
    with pytest.raises(ValueError, match="two or more candidates"):
        reward([TASK], [["ls"]])
    with pytest.raises(InputError, match=r"^--reward majority-effect: .*: use majority$"):
        make_reward("majority-effect", Scripted(READ), [])


class Answers(Scripted):
    """A model that gives each answer a probability, whatever it is asked."""

    def __init__(self, probabilities: dict[str, list[float]]) -> None:
        super().__init__(READ)
        self.probabilities = probabilities

    def logprobs(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[list[float]]:
        self.asked += texts_of(prompts)
        rows = []
        for text in continuations:
            tokens = self.probabilities.get(text, [0.0])
            rows.append([math.log(token) if token else -math.inf for token in tokens])
        return rows


@pytest.mark.parametrize(
    ("probabilities", "wanted"),
    [
        ({"yes": [0.6], "no": [0.5, 0.4]}, 0.6 / 0.8),
        ({"Yes": [0.6], "No": [0.2]}, 0.75),  # as an instruct model answers
        ({"YES": [0.3], "NO": [0.1]}, 0.75),
        ({"yes": [0.1], "Yes": [0.5], "YES": [0.03], "no": [0.01], "No": [0.2]}, 0.63 / 0.84),
        ({"yes": [0.1]}, 1.0),
        ({"No": [0.1]}, 0.0),
        ({"yes": [1e-300, 1e-300], "no": [1e-300, 3e-300]}, 0.25),  # nothing is lost in an underflow
    ],
)
def test_self_judge_by_hand(probabilities: dict[str, list[float]], wanted: float) -> None:
    model = Answers(probabilities)
    [[score, empty]] = SelfJudge(model)([TASK], [[RIGHT, " "]])
    assert value(score) == pytest.approx(wanted)
    assert empty == Score(None, reason="empty command")
    assert set(model.asked) == {DOMAIN.prompt("judge", task=TASK.text, command=RIGHT)}


def test_self_judge_abstains_without_a_number() -> None:
    for probabilities in ({}, {"yes": [0.5], "No": [math.nan]}):
        assert SelfJudge(Answers(probabilities))([TASK], [[RIGHT]]) == [[Score(None, reason="not a number")]]


def test_random_scores_know_nothing() -> None:
    first = Random()([TASK, OTHER], [[RIGHT] * 500] * 2, seed=4)
    second = Random()([TASK, OTHER], [[SWAPPED] * 500] * 2, seed=4)
    assert first == second != Random()([TASK, OTHER], [[RIGHT] * 500] * 2, seed=5)
    values = [value(score) for row in first for score in row]
    assert len(set(values)) == 1000
    assert 0 <= min(values) <= max(values) < 1
    assert abs(np.mean(values) - 0.5) < 0.05


def test_shuffled_has_the_scores_and_not_their_places() -> None:
    tasks, commands = [TASK] * 60, [[RIGHT, FOREIGN, ""]] * 60
    plain = build("likelihood", Scripted(READ))(tasks, commands)
    dealt = build("shuffled", Scripted(READ))(tasks, commands, seed=1)
    assert all(row[2] == Score(None, reason="empty command") for row in dealt)
    right = [value(row[0]) for row in dealt]
    foreign = [value(row[1]) for row in dealt]
    of_right = [value(row[0]) for row in plain]
    of_foreign = [value(row[1]) for row in plain]
    assert sorted(right + foreign) == sorted(of_right + of_foreign)
    assert abs(np.mean(right) - np.mean(foreign)) < 0.2 < value(plain[0][0]) - value(plain[0][1])
    assert dealt != build("shuffled", Scripted(READ))(tasks, commands, seed=2)


def test_shuffled_has_the_inverter_of_what_it_shuffles() -> None:
    model = Scripted(READ)
    reward = Shuffled(Likelihood(model))
    twin = copy.copy(reward)
    twin.inverter = "base"
    twin([TASK], [[RIGHT]])
    reward([TASK], [[RIGHT]])
    assert model.used == ["base", "current"]
    assert Shuffled(Random()).inverter is None


def test_length_and_constant() -> None:
    [length] = build("length", Scripted(READ))([TASK], [["ls", "ls -l", "x" * 600, " "]])
    assert value(length[0]) > value(length[1]) > value(length[2]) == 0.0 and length[3].value is None
    [constant] = build("constant", Scripted(READ))([TASK], [["ls", "gibberish", ""]])
    assert [score.value for score in constant] == [1.0, 1.0, None]


def test_truth_abstains_where_it_is_not_known() -> None:
    reward = make_reward("truth", Scripted(READ), [], truth=Truth)
    task = DOMAIN.tasks("train", 1, "truth")[0]
    right = reference(task)
    assert right is not None
    [[good, bad, invalid, empty]] = reward([task], [[right, f"{right} 9", "gibberish", ""]])
    assert (good.value, bad.value, invalid.value, empty.value) == (1.0, 0.0, 0.0, 0.0)
    assert reward([TASK], [[RIGHT]]) == [[Score(None, reason="the task has no reference")]]
