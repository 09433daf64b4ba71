"""Headroom: what choosing among candidates can gain over greedy, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from agents.evaluation.answers import Answer, Judged
from agents.evaluation.headroom import candidates, choices, headroom, scored, sizes
from agents.evaluation.report import make_report
from agents.pages.evaluation import write_evaluation
from envs.types import Score, Task
from envs.verify.truth import Case
from envs.verify.verdict import Status, Verdict

STATUS: dict[str, Status] = {"+": "correct", "-": "wrong", "!": "invalid", "?": "not_executed"}


def answer(number: int, written: Sequence[tuple[str, str]]) -> Answer:
    """A task from (command, mark) pairs, the greedy command first."""
    judged = [Judged(command, Verdict(STATUS[mark]), mark == "+") for command, mark in written]
    return Answer(Case(Task(f"t/{number}", "network", f"task {number}"), "r"), judged[0], tuple(judged[1:]))


class Table:
    """Scores by command; None for an abstention."""

    def __init__(self, values: dict[str, float | None]) -> None:
        self.values = values
        self.asked: list[list[list[str]]] = []

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        self.asked.append([list(commands) for commands in commands_P_G])
        return [[Score(self.values[command]) for command in commands] for commands in commands_P_G]


VALUES = {"": None, "a": 0.2, "b": 0.9, "b ": 0.1, "c": 0.5, "d": None}
TASKS = [
    answer(0, [("a", "-"), ("b", "+"), ("b ", "+"), ("c", "-")]),
    answer(1, [("a", "+"), ("c", "-"), ("c", "-"), ("b", "-")]),
    answer(2, [("a", "-"), ("a", "-"), ("a", "-"), ("a", "-")]),
]


def test_the_same_command_is_one_candidate() -> None:
    [first, *_] = scored(TASKS, {"table": Table(VALUES)})
    rows = candidates(first, 3)
    assert [(row.right, row.votes, row.scores["table"]) for row in rows] == [
        (0.0, 1, 0.2),
        (1.0, 2, 0.9),  # the score of the first of equals
        (0.0, 1, 0.5),
    ]
    assert len(candidates(first, 1)) == 2
    assert sizes(2) == [2] and sizes(8) == [2, 4, 8] and sizes(9) == [2, 4, 8, 9]


def test_every_command_is_scored_once_for_all_choices() -> None:
    table, other = Table(VALUES), Table(dict.fromkeys(VALUES, 1.0))
    found = scored(TASKS, {"table": table, "other": other})
    assert table.asked == [[["a", "b", "b ", "c"], ["a", "c", "c", "b"], ["a", "a", "a", "a"]]]
    assert [judged.score for judged in found[0].samples] == [Score(0.9), Score(0.1), Score(0.5)]
    assert found[0].greedy.score is None
    assert [score.value for score in found[0].scores["other"]] == [1.0] * 4


def chosen(written: Sequence[tuple[str, str]]) -> dict[str, float | None]:
    rows = scored([answer(0, written)], {"table": Table(VALUES)})
    return choices(candidates(rows[0], len(written)))


def test_choices_by_hand() -> None:
    assert chosen([("a", "-"), ("b", "+"), ("b", "+"), ("c", "-")]) == {
        "any right": 1.0,
        "table": 1.0,
        "most votes": 1.0,
        "random pick": pytest.approx(1 / 3),
    }
    # One vote each: the greedy command is taken.
    assert chosen([("a", "-"), ("c", "+")])["most votes"] == 0.0
    assert chosen([("a", "+"), ("c", "-")])["table"] == 0.0
    # No command is no vote.
    assert chosen([("a", "+"), ("", "!"), ("", "!")])["most votes"] == 1.0


def test_what_was_not_executed_is_no_candidate() -> None:
    assert chosen([("a", "+"), ("b", "?"), ("b", "?"), ("b", "?")]) == {
        "any right": 1.0,
        "table": 1.0,
        "most votes": 1.0,
        "random pick": 1.0,
    }
    assert set(chosen([("a", "?"), ("b", "+")]).values()) == {None}


def test_where_the_reward_abstains_greedy_stands() -> None:
    values: dict[str, float | None] = {"a": None, "b": None}
    for mark, other, wanted in (("+", "-", 1.0), ("-", "+", 0.0)):
        rows = scored([answer(0, [("a", mark), ("b", other)])], {"table": Table(values)})
        assert choices(candidates(rows[0], 1))["table"] == wanted
    # An abstention loses to any score.
    assert chosen([("d", "-"), ("a", "+")])["table"] == 1.0


def test_headroom_by_hand() -> None:
    found = headroom(scored(TASKS, {"table": Table(VALUES)}), 3)
    assert found["greedy"]["value"] == pytest.approx(1 / 3)
    two, three = found["sizes"]
    assert two["different"] == pytest.approx((2 + 2 + 1) / 3)
    assert three["different"] == pytest.approx((3 + 3 + 1) / 3)
    any_right, table, votes, blind = three["choices"].values()
    assert any_right["accuracy"]["value"] == pytest.approx(2 / 3)
    assert any_right["headroom"]["value"] == pytest.approx(1 / 3)
    assert (any_right["headroom"]["gained"], any_right["headroom"]["lost"]) == (1, 0)
    assert table["headroom"]["value"] == 0.0
    assert (table["headroom"]["gained"], table["headroom"]["lost"]) == (1, 1)
    assert votes["accuracy"]["value"] == pytest.approx(1 / 3)
    assert blind["accuracy"]["value"] == pytest.approx((1 / 3 + 1 / 3 + 0) / 3)
    assert blind["headroom"]["p"] is None
    low, high = any_right["headroom"]["low"], any_right["headroom"]["high"]
    assert low <= any_right["headroom"]["value"] <= high
    # Against most votes, which is right for the first task alone.
    assert (any_right["over_votes"]["gained"], any_right["over_votes"]["lost"]) == (1, 0)
    assert (table["over_votes"]["gained"], table["over_votes"]["lost"]) == (0, 0)
    # Samples of the first task: b right 0.9, b right 0.1, c wrong 0.5. The others have no right sample.
    assert found["auc_within"] == {"table": {"value": 0.5, "low": 0.5, "high": 0.5, "tasks": 1}}


def test_the_page_and_the_report_have_it(tmp_path: Any) -> None:
    rows = scored(TASKS, {"a <reward>": Table(VALUES)})
    about = {"name": "start", "model": "embedded", "adapter": None, "labels": 0}
    settings = {"domain": "network", "reward": "length", "labelled": False, "tasks_file": None}
    report = make_report({**settings, "choosing": ["a <reward>", "b"]}, 3, [(about, rows)])
    assert report["subjects"][0]["headroom"] == headroom(rows, 3)
    write_evaluation(report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert 'id="headroom"' in page and "a &lt;reward&gt;" in page and "headroom of 3" in page
    assert "2.3 different" in page
