"""The reward `channel`: by hand, whose weights score what, and that it cannot be won by confidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import stir
from scripted import DOMAIN, FOREIGN, READ, RIGHT, SWAPPED, TASK, Scripted, build, value

from agents.policy.policy import Policy
from agents.training.update import fine_tune
from envs.prompts import forward_prompt
from envs.types import LanguageModel, Score
from rewards.channel import Channel
from rewards.likelihood import Likelihood
from rewards.registry import reward_info

ASKED = forward_prompt(TASK)


class Channelled(Scripted):
    """Log-probabilities of tasks as scripted; those of commands differ with the weights."""

    def logprobs(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[list[float]]:
        if not prompts or prompts[0] != ASKED:
            return super().logprobs(prompts, continuations)
        likely = {"start": 0.5, "current": 0.8}[self.used[-1]]
        rows = []
        for command in continuations:
            rows.append([math.log(likely if word in RIGHT.split() else 0.2) for word in command.split()])
        return rows


def test_by_hand() -> None:
    [[right, swapped]] = build("channel", Channelled(READ))([TASK], [[RIGHT, SWAPPED]])
    assert right.parts == pytest.approx({"inverse": 0.9, "forward": 0.5})
    assert value(right) == pytest.approx(math.sqrt(0.9 * 0.5))
    inverse, forward = (0.9**6 * 0.1) ** (1 / 7), (0.5**3 * 0.2) ** (1 / 4)
    assert swapped.parts == pytest.approx({"inverse": inverse, "forward": forward})
    assert value(swapped) == pytest.approx(math.exp((math.log(inverse) + math.log(forward)) / 2))


def test_the_weight_of_the_command() -> None:
    for weight, wanted in ((0.0, 0.9), (1.0, math.sqrt(0.45)), (3.0, (0.9 * 0.5**3) ** 0.25)):
        [[score]] = Channel(Channelled(READ), weight=weight)([TASK], [[RIGHT]])
        assert value(score) == pytest.approx(wanted)
    for weight in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="must be 0 or more"):
            Channel(Channelled(READ), weight=weight)


def test_the_command_is_scored_by_the_start_whoever_reconstructs() -> None:
    for inverter in ("current", "base", "ema"):
        model = Channelled(READ)
        [[score]] = build("channel", model, inverter=inverter)([TASK], [[RIGHT]])
        assert model.used == [inverter, "start"]
        assert score.parts["forward"] == pytest.approx(0.5)
    model = Channelled(READ)
    [[score]] = Channel(model, forward="current")([TASK], [[RIGHT]])
    assert score.parts["forward"] == pytest.approx(0.8)
    assert reward_info("channel").needs_start


def test_each_pair_is_asked_once_and_no_number_abstains() -> None:
    model = Channelled(READ)
    [scores] = Channel(model)([TASK], [[RIGHT, FOREIGN, RIGHT, " "]])
    assert scores[0] == scores[2] != scores[1]
    assert scores[3] == Score(None, reason="empty command")
    assert len(model.asked) == len({DOMAIN.prompt("inverse", command=text) for text in (RIGHT, FOREIGN)})

    class NoNumbers(Channelled):
        def logprobs(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[list[float]]:
            if prompts[0] == ASKED:
                return [[math.nan], [-math.inf], []]
            return super().logprobs(prompts, continuations)

    [scores] = Channel(NoNumbers(READ))([TASK], [[RIGHT, SWAPPED, FOREIGN]])
    assert [score.value for score in scores] == [None, 0.0, None]
    assert scores[0].reason == scores[2].reason == "not a number"


def test_on_a_policy_by_hand(policy: LanguageModel) -> None:
    [[score]] = Channel(policy)([TASK], [[RIGHT]])
    with policy.inverter("base"):
        [row] = policy.logprobs([ASKED], [RIGHT])
    assert score.parts["forward"] == pytest.approx(math.exp(math.fsum(row) / len(row)))
    [[read]] = Likelihood(policy)([TASK], [[RIGHT]])
    assert score.parts["inverse"] == pytest.approx(value(read))


def test_what_a_command_is_begun_with_is_not_counted_again(
    policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the command's term of the reward nor in its entropy."""
    monkeypatch.setattr(policy.tokens, "prefill", "nmap -p")
    for command, rest in ((RIGHT, " 443 web1.test"), (FOREIGN, FOREIGN)):
        [[score]] = Channel(policy)([TASK], [[command]])
        pair = (policy.prompt_ids([ASKED])[0], policy.completion_ids([rest])[0])
        with policy.inverter("start"):
            [row] = policy.logprobs_of_ids([pair])
        assert score.parts["forward"] == pytest.approx(math.exp(math.fsum(row) / len(row)))
    assert policy.entropies([ASKED], [RIGHT]) == policy.entropies([ASKED], [" 443 web1.test"])
    [[nothing_left]] = Channel(policy)([TASK], [["nmap -p"]])
    assert (nothing_left.value, nothing_left.reason) == (None, "not a number")


def test_the_start_is_the_adapter_that_the_run_began_with(policy: Policy, tmp_path: Path) -> None:
    """Not the base model, which has not learnt to write commands; and not what training made of it."""

    def forward() -> float:
        [[score]] = Channel(policy)([TASK], [[RIGHT]])
        return score.parts["forward"]

    base = forward()
    policy.save(tmp_path)
    policy.load_start(tmp_path)
    try:
        first = forward()
        assert first == Channel(policy, forward="current")([TASK], [[RIGHT]])[0][0].parts["forward"] != base
        stir(policy, 1)
        weights = policy.adapter_hash()
        assert forward() == first
        assert policy.adapter_hash() == weights
    finally:
        policy.start = None


def test_training_on_what_it_says_raises_a_reward_by_the_trained_policy_alone(policy: Any) -> None:
    """The collapse that `self-certainty` is prone to: the policy wins by repeating itself."""
    nonsense = "ls -a -a -a"
    prompts, completions = policy.prompt_ids([ASKED]), policy.completion_ids([nonsense])

    def forward(which: str) -> float:
        return Channel(policy, forward=which)([TASK], [[nonsense]])[0][0].parts["forward"]

    before = {which: forward(which) for which in ("start", "current")}
    examples = list(zip(prompts, completions, strict=True))
    fine_tune(policy, examples, lr=1e-2, batch_size=1, epochs=30, stream_parts=(0, "repeat"))
    assert forward("current") > 3 * before["current"]
    assert forward("start") == before["start"]
