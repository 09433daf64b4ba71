"""Drawing tasks again whose candidates all score alike: which ones, how often, and what is counted."""

from __future__ import annotations

import pytest

from agents.training.rollouts import Batch, Rollout, alike, redrawn
from envs.types import Completion, Score, Task


def group(name: str, *values: float | None) -> list[Rollout]:
    """The candidates of the task `name`, with these scores."""
    return [Rollout(Task(name, "shell", name), Completion("ls"), Score(value)) for value in values]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ((0.5, 0.5, 0.5), True),
        ((0.5, 0.5, 0.25), False),
        ((0.0, 0.0), True),
        ((1.0, None, 1.0), True),  # nothing is known of the second
        ((1.0, None, 0.5), False),
        ((None, None), True),
        ((0.5,), True),
    ],
)
def test_candidates_score_alike(values: tuple[float | None, ...], wanted: bool) -> None:
    assert alike(group("t", *values)) == wanted


def test_redrawn_by_hand() -> None:
    """Of four tasks two are alike; of the two new ones one is; then the source has no more for it."""
    first = Batch(
        [group("a", 1, 1), group("b", 1, 0), group("c", 0, 0), group("d", 0, 1)],
        {"duplicate": 1},
        {"generate": 1.0, "reward": 2.0},
    )
    asked = []

    def write(tasks: int, turn: int) -> Batch:
        asked.append((tasks, turn))
        new = [group("e", 0, 0), group("f", 0, 1)] if turn == 1 else []
        return Batch(new, {"duplicate": 2, "missing": 1}, {"generate": 0.5, "reward": 0.25})

    for most, turns in ((0, []), (1, [(2, 1)]), (3, [(2, 1), (1, 2), (1, 3)])):
        asked.clear()
        found = redrawn(first, most, write)
        assert asked == turns
        in_place = ["e", "b", "f", "d"] if most else ["a", "b", "c", "d"]
        assert [row[0].task.id for row in found.groups] == in_place
        assert [row.task.id for row in found.redrawn] == (["a", "a", "c", "c"] if most else [])
        assert found.tasks_scored == (6 if most else 4)
        assert found.dropped == {"duplicate": 1 + 2 * len(turns)} | ({"missing": len(turns)} if turns else {})
        assert found.seconds == {"generate": 1 + 0.5 * len(turns), "reward": 2 + 0.25 * len(turns)}
    assert [row[0].task.id for row in first.groups] == ["a", "b", "c", "d"]


def test_no_task_is_drawn_again_where_all_differ() -> None:
    batch = Batch([group("a", 1, 0), group("b", 0.5, 0.25)])

    def write(tasks: int, turn: int) -> Batch:
        raise AssertionError((tasks, turn))

    assert redrawn(batch, 5, write).groups == batch.groups
