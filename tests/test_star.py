"""STaR: what is right is kept, failures are tried with a hint that is not learnt, each round starts over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agents.cli.command import run_command
from agents.policy.labels import learnt_from
from agents.star import Config, hinted, hints_of, main, right_ones
from agents.training import update
from agents.training.rollouts import Batch, Rollout
from envs.domain import load_domain
from envs.prompts import forward_prompt, hint_prompt
from envs.types import Completion, Score, Task
from envs.verify.truth import find_case

SMALL = ["--domain", "network", "--force", "--no-gates", "--max-new-tokens", "12", "--tasks", "16"]
SMALL += ["--eval-tasks", "3", "--eval-subset", "2", "--eval-samples", "1", "--reward", "random"]
SMALL += ["--candidates", "1"]  # so that some tasks have no right answer


def run(model: Path, folder: Path, *flags: str) -> Path:
    """Runs the command in this process -> the run's folder."""
    argv = ["--model", str(model), *SMALL, "--output", str(folder.parent), "--name", folder.name, *flags]
    assert run_command(Config, main, argv, "star") == 0
    return folder


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rollout(task: Task, command: str, value: float | None) -> Rollout:
    return Rollout(task, Completion(command), Score(value))


def test_right_answers_by_hand() -> None:
    values = [[1.0, 0.0, 1.0], [None, 0.5, 0.4], [0.0, 0.0, 0.0]]
    assert right_ones(values, 0.5, None) == [0, 2, 4]
    assert right_ones(values, 0.5, 1) == [0, 4]  # the first one of a task
    assert right_ones(values, 0.0, 2) == [0, 1, 4, 5, 6, 7]
    assert right_ones(values, 1.0, 10) == [0, 2]


def test_only_tasks_without_a_right_answer_get_a_hint_and_it_is_their_reference() -> None:
    solved, failed, half = load_domain("network").tasks("train", 3, "star")
    own = Task("file/1", "network", "a task of a file, whose reference nobody knows")
    groups = [
        [rollout(solved, "a", 1.0), rollout(solved, "b", 1.0)],
        [rollout(failed, "a", 0.0), rollout(failed, "b", 0.0)],
        [rollout(half, "a", 0.0), rollout(half, "b", 1.0)],
        [rollout(own, "a", 0.0), rollout(own, "b", None)],
    ]
    case = find_case(failed)
    assert case is not None
    assert hints_of(Batch(groups), right_ones(Batch(groups).acceptable, 0.5, None)) == [
        (failed, case.reference)
    ]


def test_the_hint_is_in_the_prompt_and_not_in_what_is_learnt(policy: Any) -> None:
    task = Task("t", "network", "ping db.test 5 times", "ping")
    plain, asked = forward_prompt(task), hint_prompt(task, "ping -c 5 db.test")
    assert asked.text == f"{plain.text}\nHint: ping -c 5 db.test"
    assert (asked.domain, asked.kind, asked.system) == (plain.domain, plain.kind, plain.system)
    [(prompt, _)] = update.examples_of(policy, [rollout(task, "ping -c 5 db.test", 1.0)])
    assert prompt == policy.prompt_ids([plain])[0]


def test_a_model_that_repeats_the_hint_is_right(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With execution as the reward: the references themselves are right, anything else is not."""
    from types import SimpleNamespace

    from rewards.labelled import Truth

    tasks = load_domain("network").tasks("train", 4, "star")
    hints = hints_of(Batch([[rollout(task, "true", 0.0)] for task in tasks]), [])
    copied = iter([*(command for _, command in hints[:3]), "true"])

    def repeat(prompts: Any, **_: Any) -> list[list[Completion]]:
        return [[Completion(next(copied))] for _ in prompts]

    monkeypatch.setattr(policy, "generate", repeat)
    session: Any = SimpleNamespace(policy=policy, reward=Truth())
    again = hinted(session, Config(), 1, hints)
    assert right_ones([[one.acceptable] for one in again], 0.5, 1) == [0, 1, 2]


@pytest.fixture(scope="module")
def two_rounds(brief: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(brief, tmp_path_factory.mktemp("star") / "a", "--cycles", "2")


def test_what_is_learnt_is_in_the_log_and_counted(two_rounds: Path) -> None:
    rows = rows_of(two_rounds / "rollouts.jsonl")
    metrics = [row for row in rows_of(two_rounds / "metrics.jsonl") if "star/right" in row]
    learnt = 0.0
    for cycle, logged in enumerate(metrics, start=1):
        for phase, name in (("before", "star/right"), ("hinted", "star/rationalized")):
            own = [row for row in rows if (row["cycle"], row["phase"]) == (cycle, phase)]
            assert logged[name] == sum(row["accepted"] for row in own) > 0
            learnt += logged[name]
        assert logged["train/examples"] == learnt  # all rounds so far
    results = json.loads((two_rounds / "progress.json").read_text())
    assert results["labelled"] is True
    assert results["labels"]["end"] == sum(row["phase"] == "hinted" for row in rows)  # a reference each


@pytest.mark.parametrize(
    ("flags", "verdicts", "labelled"),
    [
        (["--reward", "random", "--no-rationalize"], 0, "label-free"),
        (["--reward", "truth", "--no-rationalize"], 4, "labelled (4)"),
        (["--reward", "truth"], 4, "labelled (8)"),  # no answer of this model is right: a hint each
    ],
)
def test_verdicts_and_hints_are_labels_and_nothing_else_is(
    brief: Path, tmp_path: Path, flags: list[str], verdicts: int, labelled: str
) -> None:
    folder = run(brief, tmp_path / "a", "--cycles", "1", "--tasks", "4", *flags)
    results = json.loads((folder / "progress.json").read_text())
    hints = sum(row["phase"] == "hinted" for row in rows_of(folder / "rollouts.jsonl"))
    assert results["labels"]["end"] == verdicts + hints
    assert learnt_from(results) == labelled


@pytest.mark.slow
def test_each_round_starts_from_the_first_model_or_from_the_last(
    brief: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: dict[str, list[str]] = {}
    real = update.fine_tune

    def noted(policy: Any, examples: Any, **settings: Any) -> Any:
        starts[where].append(policy.adapter_hash())
        return real(policy, examples, **settings)

    monkeypatch.setattr(update, "fine_tune", noted)
    for where in ("base", "last"):
        starts[where] = []
        run(brief, tmp_path / where, "--cycles", "2", "--rounds-from", where, "--no-rationalize")
    assert starts["base"][0] == starts["base"][1] == starts["last"][0] != starts["last"][1]


def no_dash(model: Any, pool: Any) -> Any:
    """A reward of one's own: 1 for a command without a dash, else 0."""

    def score(tasks_P: Any, commands_P_G: Any, seed: int = 0) -> list[list[Score]]:
        return [[Score(float("-" not in command)) for command in commands] for commands in commands_P_G]

    return score


@pytest.mark.slow
def test_a_trivial_reward_rises(tmp_path: Path) -> None:
    flags = ["--domain", "shell", "--tasks", "40", "--cycles", "3", "--lr", "3e-3", "--max-new-tokens", "32"]
    flags += ["--reward", "test_star:no_dash", "--no-rationalize", "--candidates", "4", "--epochs", "3"]
    folder = run(Path("embedded"), tmp_path / "a", *flags)
    means = [row["reward/mean"] for row in rows_of(folder / "metrics.jsonl") if "reward/mean" in row]
    assert means[0] < 0.4
    assert means[-1] > 0.7


def test_bad_settings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, key in ((["--threshold", "2"], "--threshold 2"), (["--per-task", "0"], "--per-task 0")):
        assert run_command(Config, main, flags, "star") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and key in error
