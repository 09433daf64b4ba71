"""Blends: several rewards as one, by weights in a YAML file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from scripted import POOL, READ, RIGHT, SWAPPED, TASK, Scripted, value

from envs.types import InputError, Task
from rewards.blend import read_blend
from rewards.registry import REWARDS, make_reward, reward_info, shown
from rewards.wrappers import with_inverter


def written(folder: Path, text: str) -> str:
    path = folder / "blend.yaml"
    path.write_text(text)
    return str(path)


def test_a_blend_is_the_weighted_mean_and_logs_every_part(tmp_path: Path) -> None:
    name = written(tmp_path, "weights: {likelihood: 0.6, slots: 0.2, majority: 0}\nselect: quantile\n")
    model = Scripted(READ)
    [[right, swapped]] = make_reward(name, model, POOL)([TASK], [[RIGHT, SWAPPED]])
    assert value(right) == pytest.approx((0.6 * 0.9 + 0.2 * 1.0) / 0.8)
    assert right.reconstruction == TASK.text
    assert right.parts["likelihood"] == pytest.approx(0.9)
    assert right.parts["slots"] == 1.0
    assert right.parts["majority"] == 0.5
    assert right.parts["gate/valid"] == 1.0
    assert value(swapped) < value(right)
    info = reward_info(name)
    assert (info.select, info.needs_group, info.labelled, info.bounded) == ("quantile", True, False, True)
    assert shown(written(tmp_path, "weights: {likelihood: 1, truth: 0}")).endswith("blend.yaml (labelled)")


def test_a_blend_abstains_where_a_part_that_counts_does(tmp_path: Path) -> None:
    task = Task("t", "network", "show all sockets")
    cases = [("{likelihood: 1, slots: 1}", True), ("{likelihood: 1, slots: 0}", False)]
    for weights, abstains in cases:
        reward = make_reward(written(tmp_path, f"weights: {weights}"), Scripted(READ), POOL)
        [[score]] = reward([task], [[RIGHT]])
        assert (score.value is None) == abstains
        assert (score.reason == "no value in the task") == abstains
        assert "slots" not in score.parts


def test_a_closed_gate_closes_the_whole_blend(tmp_path: Path) -> None:
    name = written(tmp_path, "weights: {random: 1, likelihood: 1}")
    reward = make_reward(name, Scripted({**READ, "echo a": "x"}), POOL)
    [[right, closed, long]] = reward([TASK], [[RIGHT, "echo a", "nmap " + "x" * 600]])
    assert value(right) > 0.4
    assert value(closed) == 0.0
    assert long.value is None
    assert closed.reason == "not a command of this domain"
    assert closed.parts["random"] > 0


def test_a_gate_of_a_part_that_is_only_logged_closes_nothing(tmp_path: Path) -> None:
    model = Scripted({"echo a": "x"})
    alone = make_reward(written(tmp_path, "weights: {random: 1}"), model, POOL)
    [[wanted]] = alone([TASK], [["echo a"]])
    both = make_reward(written(tmp_path, "weights: {random: 1, likelihood: 0}"), model, POOL)
    [[logged]] = both([TASK], [["echo a"]])
    assert logged.value == wanted.value
    assert logged.parts["likelihood"] == 0.0
    assert not logged.closed
    assert logged.reason == ""


def test_a_blend_has_the_inverter_of_its_parts(tmp_path: Path) -> None:
    model = Scripted(READ)
    name = written(tmp_path, "weights: {length: 1, likelihood: 1, slots: 1}")
    reward: Any = make_reward(name, model, POOL)
    twin = copy.copy(reward)
    twin.inverter = "base"
    twin([TASK], [[RIGHT]])
    assert model.used == ["base", "base"]
    assert reward.inverter == "current"
    without: Any = make_reward(written(tmp_path, "weights: {length: 1, random: 1}"), model, POOL)
    assert without.inverter is None
    assert with_inverter(without, "base") is without


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "weights: {likelihood: 0.7}\nselct: best",
            ":2: selct: unknown key: did you mean select?",
        ),
        ("select: best", ":1: weights: is missing: write weights: {likelihood: 0.7, slots: 0.3}"),
        (
            "weights:\n  likelyhood: 1",
            ":2: weights.likelyhood: no such reward: did you mean likelihood?",
        ),
        (
            "weights:\n  slots: -1",
            ":2: weights.slots: must be a number, 0 or more (found -1): write 0.5",
        ),
        ("weights:\n  slots: [1]", ":2: weights.slots: must be a number"),
        ("weights:\n  slots: .nan", ":2: weights.slots: must be a number"),
        ("weights: {slots: 0}", ":1: weights: none is above 0: give one reward a weight"),
        ("weights: 3", ":1: weights: must be a mapping: write likelihood: 0.7"),
        (
            "weights:\n  slots: 1\n  slots: 2",
            ":3: weights.slots: this key is there twice, first in line 2: remove",
        ),
        (
            "weights: {slots: 1}\n\nselect: bets",
            ":3: select: must be one of threshold, best, quantile (found 'bets'): did you mean best?",
        ),
        ("weights: {slots: true}", ":1: weights.slots: must be a number, 0 or more (found True)"),
        ("weights: {slots: 1}\nselect: 2", ":2: select: must be one of threshold, best, quantile (found 2)"),
        ("weights: &w\n  slots: *w", ":1: weights: more than 50 levels deep"),
        ("- a", ":1: the file: must be a mapping"),
        ("", ":1: the file: must be a mapping"),
        ("weights: {slots", ":1: not valid YAML: "),
    ],
)
def test_a_faulty_blend_gets_one_line(tmp_path: Path, text: str, message: str) -> None:
    name = written(tmp_path, text)
    with pytest.raises(InputError) as error:
        reward_info(name)
    assert str(error.value).startswith(name + message) and "\n" not in str(error.value)


def test_blends_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff")
    wanted = {
        f"{tmp_path}/no.yaml": "--reward {}: no such file: "
        "give the path of a YAML file, or the name of a reward",
        f"{tmp_path}/bytes.yaml": "{}:1: not UTF-8 (byte 0xff): save the file as UTF-8",
    }
    for name, message in wanted.items():
        with pytest.raises(InputError) as caught:
            reward_info(name)
        assert str(caught.value) == message.format(name)


def test_the_example_of_a_blend() -> None:
    example = Path(__file__).resolve().parent.parent / "configs" / "rewards" / "example.yaml"
    assert read_blend(str(example), list(REWARDS)).weights["majority"] == 0
