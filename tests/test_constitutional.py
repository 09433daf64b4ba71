"""Constitutional AI: revisions by drawn principles, preferences over both orders and all principles."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agents.cli.command import run_command
from agents.constitutional import Config, first_two, main, preferences, preferred_pairs, revised
from agents.policy.labels import learnt_from
from agents.training.constitution import Principle, read_constitution
from agents.training.rollouts import Batch, Rollout
from envs.types import Completion, InputError, Score, Task

pytest.importorskip("trl")

SMALL = ["--domain", "network", "--force", "--no-gates", "--max-new-tokens", "12", "--tasks", "6"]
SMALL += ["--eval-tasks", "3", "--eval-subset", "2", "--eval-samples", "1", "--margin", "0"]
TASK = Task("t", "shell", "list all files")
TWO = (Principle("short", "Be short."), Principle("safe", "Be safe."))


def rollout(command: str, task: Task = TASK, cut: bool = False) -> Rollout:
    return Rollout(task, Completion(command, (1,), truncated=cut), Score(0.5))


class Judge:
    """Says A with a chance that depends on the principle and on which command stands first."""

    def __init__(self, chances: dict[tuple[str, str], float]) -> None:
        self.chances, self.used = chances, ""

    def inverter(self, which: str) -> Any:
        import contextlib

        self.used = which
        return contextlib.nullcontext()

    def logprobs(self, prompts: Any, continuations: Any) -> list[list[float]]:
        rows = []
        for prompt, answer in zip(prompts, continuations, strict=True):
            [chance] = [
                value
                for (principle, first), value in self.chances.items()
                if principle in prompt.text and f"A: {first}\n" in prompt.text
            ]
            likely = (chance if answer == "A" else 1 - chance) * 0.5
            rows.append([math.log(likely) if likely else -1e4])
        return rows


def test_a_preference_is_the_mean_over_orders_and_principles() -> None:
    chances = {("short", "ls"): 0.9, ("short", "ls -a"): 0.6, ("safe", "ls"): 0.5, ("safe", "ls -a"): 0.2}
    judge: Any = Judge({(name, first): value for (name, first), value in chances.items()})
    found = preferences(judge, [(TASK, "ls", "ls -a"), (TASK, "ls -a", "ls")], TWO, "base")
    wanted = (0.9 + (1 - 0.6) + 0.5 + (1 - 0.2)) / 4
    assert found == [pytest.approx(wanted), pytest.approx(1 - wanted)]
    assert judge.used == "base"


def test_a_judge_that_only_likes_a_place_prefers_nothing() -> None:
    judge: Any = Judge({("", "ls"): 0.8, ("", "ls -a"): 0.8})
    batch = Batch([[rollout("ls"), rollout("ls -a")]])
    assert preferences(judge, [(TASK, "ls", "ls -a")], TWO, "base") == [pytest.approx(0.5)]
    assert preferred_pairs(judge, batch, TWO, "base", 0.01) == []


def test_a_judge_whose_probabilities_are_no_numbers_prefers_nothing() -> None:
    judge: Any = Judge({("", "ls"): math.nan, ("", "ls -a"): 0.8})
    batch = Batch([[rollout("ls"), rollout("ls -a")]])
    assert preferred_pairs(judge, batch, TWO, "base", 0.0) == []
    judge = Judge({("", "ls"): 1.0, ("", "ls -a"): 1e-320})
    assert preferences(judge, [(TASK, "ls", "ls -a")], TWO, "base") == [pytest.approx(1.0)]


def test_pairs_are_the_first_two_that_differ_the_better_one_first() -> None:
    assert first_two([rollout("ls"), rollout("ls"), rollout("pwd"), rollout("id")]) == (0, 2)
    assert first_two([rollout("ls"), rollout("pwd", cut=True), rollout("")]) is None
    judge: Any = Judge({("", "ls"): 0.1, ("", "pwd"): 0.7})
    batch = Batch([[rollout("ls"), rollout("ls")], [rollout("ls"), rollout("pwd")]])
    assert preferred_pairs(judge, batch, TWO, "current", 0.05) == [(3, 2)]
    assert preferred_pairs(judge, batch, TWO, "current", 0.45) == []


def test_a_revision_follows_from_the_critique_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    answers = iter(["too long", "", "too short", "ls -a"])

    class Writer:
        def generate(self, prompts: Any, **_: Any) -> list[list[Completion]]:
            asked.extend(prompt.text for prompt in prompts)
            return [[Completion(next(answers))] for _ in prompts]

    def reward(tasks_P: Any, commands_P_G: Any, seed: int = 0) -> list[list[Score]]:
        return [[Score(float(bool(command))) for command in commands] for commands in commands_P_G]

    session: Any = SimpleNamespace(policy=Writer(), reward=reward)
    new = revised(session, Config(revisions=2), 1, Batch([[rollout("ls"), rollout("pwd")]]), TWO[:1])
    assert [one.command for one in new] == ["", "ls -a"]
    first, second, third, fourth = asked
    for text in asked:
        assert "Be short." in text and TASK.text in text and "Command: ls" in text  # the empty one is dropped
    assert second.endswith("Critique: too long") and fourth.endswith("Critique: too short")
    assert "Critique" not in first + third


def test_the_shipped_constitution_and_bad_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {"exact", "portable", "minimal", "harmless"} <= {one.name for one in read_constitution("commands")}
    path = tmp_path / "mine.yaml"
    for text in (
        "principles: []",
        "principles: {}",
        "rules: {a: b}",
        "principles: {a: 3}",
        "- a",
        "principles: {a: ''}",
    ):
        path.write_text(text)
        with pytest.raises(InputError, match="principles"):
            read_constitution(str(path))
    path.write_text("principles: {mine: Be kind.}")
    assert read_constitution(str(path)) == (Principle("mine", "Be kind."),)
    bad = [
        ["--constitution", "comands"],
        ["--revise-cycles", "11"],
        ["--margin", "0.5"],
        ["--candidates", "1"],
    ]
    for flags in bad:
        assert run_command(Config, main, flags, "constitutional") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and flags[0] in error


@pytest.fixture(scope="module")
def finished(brief: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("constitutional") / "a"
    argv = ["--model", str(brief), *SMALL, "--output", str(folder.parent), "--name", folder.name]
    assert run_command(Config, main, [*argv, "--cycles", "2"], "constitutional") == 0
    return folder


def test_a_run_revises_then_prefers_and_counts_what_it_asks(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    first, second = [row for row in rows if "train/revisions" in row]
    assert first["train/revisions"] > 0 == first["train/pairs"]
    assert second["train/pairs"] > 0 == second["train/revisions"]
    log = [json.loads(line) for line in (finished / "rollouts.jsonl").read_text().splitlines()]
    assert sum(row["phase"] == "revised" for row in log) == 12  # two of each of six tasks
    results = json.loads((finished / "progress.json").read_text())
    assert learnt_from(results) == "label-free"
    assert results["usage"]["judge_calls"] > 12  # the critiques, and the preferences


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_principles(
    brief: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("principles:\n  short: Be short.\n")
    argv = [
        "--model",
        str(brief),
        *SMALL,
        "--constitution",
        str(mine),
        "--output",
        str(tmp_path),
        "--name",
        "a",
    ]
    assert run_command(Config, main, [*argv, "--cycles", "1"], "constitutional") == 0
    mine.write_text("principles:\n  short: Be long.\n")
    capsys.readouterr()
    again = ["--resume", str(tmp_path / "a"), "--cycles", "2"]
    assert run_command(Config, main, again, "constitutional") == 2
    assert "its principles are not those that the run began with: restore the file" in capsys.readouterr().err
    mine.write_text("principles:\n  short: Be short.\n")
    assert run_command(Config, main, again, "constitutional") == 0


@pytest.mark.slow
def test_a_run_that_is_extended_does_not_go_back_to_revising(finished: Path, tmp_path: Path) -> None:
    """Half of the two cycles were of revising, and half of six would be one more."""
    copy = Path(shutil.copytree(finished, tmp_path / "a"))
    assert run_command(Config, main, ["--resume", str(copy), "--cycles", "6"], "constitutional") == 0
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    revisions = [row["train/revisions"] for row in rows if "train/revisions" in row]
    assert revisions[0] > 0 and revisions[1:] == [0.0] * 5


@pytest.mark.slow
def test_a_trivial_preference_is_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that likes commands without a dash."""

    def no_dash(policy: Any, pairs: Any, principles: Any, judge: str) -> list[float]:
        return [0.5 + 0.5 * (("-" in second) - ("-" in first)) for _, first, second in pairs]

    monkeypatch.setattr("agents.constitutional.preferences", no_dash)
    flags = ["--model", "embedded", "--domain", "shell", "--tasks", "60", "--cycles", "3", "--lr", "3e-3"]
    flags += [
        "--max-new-tokens",
        "32",
        "--no-gates",
        "--eval-tasks",
        "3",
        "--eval-subset",
        "2",
        "--epochs",
        "3",
    ]
    flags += ["--eval-samples", "1", "--reward", "test_star:no_dash", "--revise-cycles", "0"]
    argv = [*flags, "--output", str(tmp_path), "--name", "a"]
    assert run_command(Config, main, argv, "constitutional") == 0
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    means = [row["reward/mean"] for row in rows if "reward/mean" in row]
    assert means[0] < 0.4
    assert means[-1] > 0.7
