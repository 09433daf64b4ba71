"""The reward `semantic`: which reconstructions are one cluster, and what share of the candidates it has."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scripted import FOREIGN, OTHER, RIGHT, SWAPPED, TASK, TEXTS, Letters, Scripted, build

from envs.types import InputError, Score
from rewards.registry import make_reward
from rewards.semantic import Semantic, clusters


@pytest.mark.parametrize(
    ("degrees", "wanted"),
    [
        # The floor is 0.5, so vectors are the same from a cosine of 0.75 on: up to 41 degrees.
        ([0, 30, 60, 35, 90], [0, 0, 1, 0, 1]),
        ([60, 30, 0, 90], [0, 0, 1, 0]),  # 30 degrees is taken, so 0 has nothing to join
        ([0, 41, -41], [0, 0, 0]),  # only the first member counts
        ([0, 42, -42], [0, 1, 2]),
        ([10, 10], [0, 0]),
        ([], []),
    ],
)
def test_clusters_by_hand(degrees: list[float], wanted: list[int]) -> None:
    radians = [math.radians(angle) for angle in degrees]
    vectors = np.array([[math.cos(angle), math.sin(angle)] for angle in radians]).reshape(-1, 2)
    assert clusters(vectors, 0.5) == wanted


def test_shares_by_hand() -> None:
    """What is one cluster depends on what is reconstructed, not on the words of the command."""
    read = {RIGHT: TASK.text, "nmap -p443 web1.test": f"{TASK.text}!", FOREIGN: OTHER.text, SWAPPED: " "}
    reward = Semantic(Scripted(read), Letters(), TEXTS)  # type: ignore[arg-type]
    commands = [RIGHT, FOREIGN, "nmap -p443 web1.test", SWAPPED, ""]
    [scores] = reward([TASK], [commands])
    assert [score.value for score in scores] == [0.4, 0.2, 0.4, None, None]
    assert scores[0].parts == {"clusters": 2.0} and scores[2].reconstruction == f"{TASK.text}!"
    assert [score.reason for score in scores[3:]] == ["empty reconstruction", "empty command"]
    assert reward([TASK], [commands]) == [scores]
    [alone] = reward([TASK], [[FOREIGN, FOREIGN]])
    assert [score.value for score in alone] == [1.0, 1.0]
    [nothing] = reward([TASK], [[SWAPPED, ""]])
    assert [score.value for score in nothing] == [None, None]


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="two or more candidates"):
        build("semantic", Scripted({RIGHT: TASK.text}))([TASK], [[RIGHT]])
    with pytest.raises(InputError, match=r"^--reward semantic: needs two different tasks"):
        make_reward("semantic", Scripted({}), [])
    assert build("semantic", Scripted({}))([TASK], [[]]) == [[]]
    assert isinstance(build("semantic", Scripted({RIGHT: "a"}))([TASK], [[RIGHT, RIGHT]])[0][0], Score)
