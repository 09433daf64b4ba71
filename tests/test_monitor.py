"""Alarms say what is wrong and only then, and the best cycle is kept by a score that needs no label."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agents.cli.command import run_command
from agents.evaluate import subject_at
from agents.rejection_sft import Config, main
from agents.training.monitor import COLLAPSE, Monitor, Probes, probe, rose, text_metrics
from agents.training.rollouts import Rollout
from envs.types import Completion, Score, Task

HEALTHY = {
    "policy/distinct": 0.6,
    "policy/distinct_2": 0.5,
    "policy/entropy": 0.1,
    "policy/length": 15.0,
    "policy/copied": 0.1,
    "reward/current_minus_base": 0.0,
}
FELL = {"eval/since_peak": -0.2, "eval/since_peak/high": -0.05, "eval/since_peak/cycles": 3.0}


def rollout(task: str, command: str, score: float | None = 0.5) -> Rollout:
    return Rollout(Task("x", "shell", task), Completion(command, (1, 2)), Score(score))


def watch(monitor: Monitor, scores: Sequence[float], **metrics: float) -> tuple[dict[str, float], list[str]]:
    monitor.scored([[rollout("t", "c", score)] for score in scores])
    return monitor.observe({**HEALTHY, **{name.replace("__", "/"): value for name, value in metrics.items()}})


def test_a_healthy_run_raises_nothing() -> None:
    monitor = Monitor()
    for cycle in range(12):
        values, lines = watch(monitor, [0.5 + cycle / 100] * 20)
        assert lines == []
        assert set(values) == {"alarm/divergence", *(f"alarm/{name.replace(' ', '_')}" for name in COLLAPSE)}
        assert set(values.values()) == {0.0}


def test_divergence_needs_both_a_rise_of_the_score_and_a_fall_of_truth() -> None:
    rising, flat = [0.3 + place / 100 for place in range(20)], [0.5] * 20

    def alarm(last: Sequence[float], metrics: dict[str, float]) -> float:
        monitor = Monitor()
        for _ in range(6):
            monitor.scored([[rollout("t", "c", score)] for score in rising])
        for _ in range(2):
            monitor.scored([[rollout("t", "c", score)] for score in last])
        monitor.scored([[rollout("t", "c", score)] for score in last])
        return monitor.observe({**HEALTHY, **metrics})[0]["alarm/divergence"]

    higher = [score + 0.3 for score in rising]
    assert alarm(higher, FELL) == 1.0
    assert (
        alarm(higher, {**FELL, "eval/since_peak/high": 0.01}) == 0.0
    )  # the interval does not say that truth fell
    assert alarm(higher, {}) == 0.0  # too early to tell
    assert alarm(rising, FELL) == 0.0  # both fall or stay: no good run, but it does not deceive
    assert alarm(flat, FELL) in (0.0, 1.0)


@pytest.mark.parametrize(
    ("metric", "value", "name"),
    [
        ("policy/distinct", 0.29, "distinct"),
        ("policy/distinct_2", 0.2, "n-grams"),
        ("policy/entropy", 0.009, "entropy"),
        ("policy/length", 7.0, "length"),
        ("policy/length", 31.0, "length"),
        ("policy/copied", 0.31, "copied"),
        ("reward/current_minus_base", 0.16, "private code"),
    ],
)
def test_each_kind_of_collapse_is_said_once_and_marked_in_every_cycle(
    metric: str, value: float, name: str
) -> None:
    monitor = Monitor()
    assert watch(monitor, [0.5])[1] == []
    values, lines = watch(monitor, [0.5], **{metric.replace("/", "__"): value})
    assert [line.split(":")[0] for line in lines] == [f"ALARM {name}"]
    assert metric in lines[0]
    assert values[f"alarm/{name.replace(' ', '_')}"] == 1.0 and sum(values.values()) == 1.0
    resumed = Monitor(**json.loads(json.dumps(monitor.state)))
    for later in (monitor, resumed):
        again, lines = watch(later, [0.5], **{metric.replace("/", "__"): value})
        assert again == values and lines == []
    assert monitor.state == resumed.state


def test_a_metric_that_is_missing_raises_nothing() -> None:
    values, lines = Monitor().observe({"reward/current_minus_base": None})
    assert (values, lines) == ({"alarm/divergence": 0.0}, [])


def test_rose() -> None:
    assert rose([0.1, 0.2, 0.3] * 5, [0.6, 0.7, 0.8] * 5)
    assert not rose([0.6, 0.7, 0.8] * 5, [0.1, 0.2, 0.3] * 5)
    assert not rose([0.1, 0.9] * 3, [0.2, 1.0] * 3)
    assert not rose([], [1.0]) and not rose([0.1], [1.0, 1.0])


def test_text_metrics() -> None:
    found = text_metrics(
        [
            rollout("list all the files of docs", "find docs -type f"),
            rollout("count lines of a.txt", "echo count lines of"),
        ]
    )
    assert found["policy/distinct"] == 1.0
    assert found["policy/distinct_2"] == 1.0
    assert found["policy/copied"] == pytest.approx(
        (1 / 5 + 2 / 2) / 2
    )  # docs of list, all, the, files, docs; count and lines
    same = text_metrics([rollout("x", "wc b c")] * 4)
    assert same == {"policy/distinct": 0.25, "policy/distinct_2": 0.25, "policy/copied": None}
    assert text_metrics([]) == {"policy/distinct": None, "policy/distinct_2": None, "policy/copied": None}


def test_the_best_cycle_is_the_first_of_the_highest() -> None:
    assert Monitor().best == 0
    assert Monitor(kept={"0": 0.1, "1": 0.5, "2": 0.5, "10": 0.4}).best == 1
    assert Monitor(kept={"2": -0.5, "3": -0.4}).best == 3


def test_a_cycle_without_a_score_is_never_kept() -> None:
    """Under `entropy`, whose scores are 0 or less, such a cycle must not count as 0."""
    monitor = Monitor()
    assert monitor.keep(0, Probes([-0.3, -0.1], 0)) == pytest.approx(-0.2)
    assert monitor.keep(1, Probes([], 60)) is None
    assert (monitor.best, monitor.kept) == (0, {"0": pytest.approx(-0.2)})
    monitor = Monitor()
    assert monitor.keep(0, Probes([], 3)) is None
    assert monitor.keep(1, Probes([-0.5], 0)) == -0.5
    assert monitor.best == 1


def test_invalid_commands_lower_the_score_to_keep_by() -> None:
    """A closed gate has no score under an unbounded reward. Left out, it would raise the mean."""
    monitor = Monitor()
    assert monitor.keep(0, Probes([1.0, 2.0, 3.0], 0)) == 2.0
    assert monitor.keep(1, Probes([3.0], 2)) == (3.0 + 1.0 + 1.0) / 3  # the lowest score of the start
    assert monitor.keep(2, Probes([-1.0, 3.0], 1)) == pytest.approx((-1.0 + 3.0 - 1.0) / 3)
    assert monitor.best == 0
    resumed = Monitor(**json.loads(json.dumps(monitor.state)))
    assert resumed == monitor and resumed.lowest == 1.0


class Base:
    """A reward that says which inverter it was asked with; of a date it is invalid, of lines too long."""

    inverter = "current"

    def __call__(
        self, tasks: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        assert [len(row) for row in commands_P_G] == [1] * len(tasks)
        value = 0.75 if self.inverter == "base" else 0.0
        scores = {"date": Score(0.0, {"gate/valid": 0.0}), "lines": Score(None, {"gate/length": 0.0})}
        return [[scores.get(task.text.split()[-1], Score(value, {"gate/valid": 1.0}))] for task in tasks]


def test_probes_are_scored_by_the_base(policy: Any) -> None:
    reward = Base()
    texts = ("list files", "count files", "show the date", "count lines")
    tasks = [Task(str(place), "shell", text) for place, text in enumerate(texts)]
    assert probe(policy, reward, tasks[:2], 8, 0) == Probes([0.75, 0.75], 0)
    assert probe(policy, reward, tasks, 8, 0) == Probes([0.75, 0.75, 0.0], 1)
    assert reward.inverter == "current"


# For a model with random weights, which writes no command: no gate closes.
SMALL = ["--domain", "network", "--force", "--no-gates", "--max-new-tokens", "12"]
SMALL += ["--tasks", "6", "--eval-tasks", "4", "--eval-subset", "3", "--eval-samples", "1"]


@pytest.mark.slow
def test_keep_best_ends_with_the_best_cycle(
    brief: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from agents.training import loop

    scores = iter((0.1, 0.9, 0.5, 0.4, 0.3))
    monkeypatch.setattr(loop, "probe", lambda *_: Probes([next(scores)], 0))
    flags = [
        "--model",
        str(brief),
        *SMALL,
        "--reward",
        "random",
        "--keep",
        "best",
        "--output",
        str(tmp_path),
        "--name",
        "a",
    ]
    assert run_command(Config, main, ["--cycles", "4", *flags], "rejection_sft") == 0
    assert "kept: cycle 1 of 4" in capsys.readouterr().out
    folder = tmp_path / "a"
    results = json.loads((folder / "progress.json").read_text())
    assert results["kept"] == 1
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "cycle-0001",
        "cycle-0003",
        "cycle-0004",
    ]
    rows = [json.loads(line) for line in (folder / "truth.jsonl").read_text().splitlines()]
    assert {row["cycle"] for row in rows if row["part"] == "whole"} == {0, 1}
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["keep/score"] for row in metrics] == [0.1, 0.9, 0.5, 0.4, 0.3]

    # What is evaluated of a run is what it kept.
    assert subject_at(str(folder), False).adapter == str(folder / "checkpoints" / "cycle-0001")


@pytest.mark.slow
def test_a_reward_that_can_be_gamed_raises_the_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The longer a command, the better: the score rises, held-out accuracy falls, and the run says so."""
    from agents.training import session

    class Longer:
        def __call__(
            self, tasks: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
        ) -> list[list[Score]]:
            return [[Score(min(1.0, len(command) / 100)) for command in row] for row in commands_P_G]

    monkeypatch.setattr(session, "make_reward", lambda *_, **__: Longer())
    flags = ["--model", "embedded", "--reward", "random", "--domain", "network", "--select", "best"]
    flags += ["--cycles", "5", "--lr", "5e-3", "--max-new-tokens", "32"]
    flags += ["--tasks", "16", "--eval-tasks", "40", "--eval-subset", "40", "--eval-samples", "1"]
    flags += ["--temperature", "1.4", "--candidates", "4"]  # room to game: odd commands among the candidates
    flags += ["--output", str(tmp_path), "--name", "a"]
    assert run_command(Config, main, flags, "rejection_sft") == 0
    assert "ALARM divergence: its own score rises while held-out accuracy falls" in capsys.readouterr().out
    metrics = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert max(row.get("alarm/divergence", 0.0) for row in metrics) == 1.0
    assert metrics[-1]["reward/mean"] > metrics[1]["reward/mean"]
    assert metrics[-1]["eval/greedy"] < metrics[0]["eval/greedy"]
