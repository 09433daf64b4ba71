"""The reward `hidden-slot`: which values are hidden, and how they are scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from scripted import DOMAIN, FOREIGN, RIGHT, SWAPPED, TASK, Scripted, texts_of, value

from envs.types import Score, Task
from rewards.hidden_slot import Gap, HiddenSlot, gaps


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "scan port 443 on web1.test",
            [("scan port", "scan port 443"), ("scan port 443 on", "scan port 443 on web1.test")],
        ),
        ("find 'two words', then stop", [("find", "find 'two words',")]),  # to the end of the word
        ("copy a.txt over a.txt", [("copy", "copy a.txt")]),  # the second one would be shown
        ("443 is the port", [("", "443")]),
        ("list all files", []),
    ],
)
def test_each_value_is_hidden_where_it_comes_first(text: str, wanted: list[tuple[str, str]]) -> None:
    assert gaps(text) == [Gap(*gap) for gap in wanted]


class Reader(Scripted):
    """Gives each word of a task the probability that stands for it under the command, else 1."""

    def __init__(self, probabilities: dict[str, dict[str, float]]) -> None:
        super().__init__({})
        self.probabilities = {}
        for command, words in probabilities.items():
            self.probabilities[DOMAIN.prompt("inverse", command=command)] = words

    def logprobs(self, prompts: Sequence[Any], continuations: Sequence[str]) -> list[list[float]]:
        rows = []
        for prompt, text in zip(texts_of(prompts), continuations, strict=True):
            words = self.probabilities[prompt]
            rows.append([math.log(words.get(word, 1.0)) for word in text.split()])
        return rows


def test_by_hand() -> None:
    """The mean of p(443) and p(web1.test). How likely the other words are does not matter."""
    reader = Reader(
        {
            RIGHT: {"scan": 0.001, "443": 0.9, "on": 0.2, "web1.test": 0.7},
            SWAPPED: {"443": 0.1, "web1.test": 0.7},
            FOREIGN: {"443": 0.01, "web1.test": math.nan},
        }
    )
    [[right, swapped, foreign, empty]] = HiddenSlot(reader)([TASK], [[RIGHT, SWAPPED, FOREIGN, " "]])
    assert value(right) == pytest.approx(0.8) and right.parts["weakest"] == pytest.approx(0.7)
    assert value(swapped) == pytest.approx(0.4) and swapped.parts["weakest"] == pytest.approx(0.1)
    assert foreign == Score(None, reason="not a number")
    assert empty == Score(None, reason="empty command")


def test_without_a_value_it_abstains_and_asks_nothing() -> None:
    model = Scripted({})
    plain = Task("t", "network", "show all listening sockets")
    assert HiddenSlot(model)([plain], [["ss -l"]]) == [[Score(None, reason="no value in the task")]]
    assert model.asked == []


def test_on_a_policy_it_is_the_probability_of_the_tokens_of_the_value(policy: Any) -> None:
    """The value's share of the log-probability of the task, whose other tokens stay out."""
    [[score]] = HiddenSlot(policy)([TASK], [[RIGHT]])
    prompt = DOMAIN.prompt("inverse", command=RIGHT)
    [whole] = policy.logprobs([prompt], [TASK.text])
    wanted = []
    for before, through in gaps(TASK.text):
        first, last = (len(ids) for ids in policy.completion_ids([before, through]))
        wanted.append(math.exp(math.fsum(whole[first:last])))
    assert value(score) == pytest.approx(sum(wanted) / 2, rel=1e-3)
