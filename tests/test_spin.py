"""SPIN: what is preferred to what, the pairs of two rounds, with labels and without."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from agents.cli.command import parse, run_command
from agents.policy.labels import learnt_from
from agents.policy.load import load_policy
from agents.spin import Config, best_of, main, pairs_of
from agents.training.rollouts import Rollout
from envs.prompts import forward_prompt
from envs.types import Completion, Score, Task
from envs.verify.truth import find_case

pytest.importorskip("trl")

SMALL = ["--domain", "network", "--force", "--no-gates", "--max-new-tokens", "12", "--tasks", "6"]
SMALL += ["--eval-tasks", "3", "--eval-subset", "2", "--eval-samples", "1"]
TASK = Task("t", "network", "ping db.test 5 times")


def run(model: Path, folder: Path, *flags: str) -> Path:
    """Runs the command in this process -> the run's folder."""
    argv = ["--model", str(model), *SMALL, "--output", str(folder.parent), "--name", folder.name, *flags]
    assert run_command(Config, main, argv, "spin") == 0
    return folder


def metrics_of(folder: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def results_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "progress.json").read_text()))


def test_each_different_candidate_is_rejected_once() -> None:
    every = [True] * 5
    assert pairs_of(["a", "b", "a", "b", "c"], every, "a") == [1, 4]
    assert pairs_of(["a", "b", "", "b", "c"], every, "x") == [0, 1, 4]  # nothing written is no answer
    assert pairs_of(["a", "b", "c"], [True, False, True], "a") == [2]  # a command that was cut has no end
    assert pairs_of(["a", "a"], [True, True], "a") == []  # nothing to tell from the reference: SPIN has ended


def test_the_best_candidate_is_one_that_may_be_learnt() -> None:
    def rollout(command: str, value: float | None, opened: bool = True, cut: bool = False) -> Rollout:
        return Rollout(TASK, Completion(command, truncated=cut), Score(value, {"gate/valid": float(opened)}))

    group = [
        rollout("cut", 1.0, cut=True),
        rollout("gated", 0.9, opened=False),
        rollout("unknown", None),
        rollout("ls first", 0.5),
        rollout("ls second", 0.5),
        rollout("low", 0.1),
    ]
    best = best_of(group)
    assert best is not None and best.command == "ls first"
    assert best_of(group[:3]) is None


@pytest.fixture(scope="module")
def labelled(brief: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(brief, tmp_path_factory.mktemp("spin") / "a", "--cycles", "3")


def test_a_round_trains_on_its_pairs_and_those_of_the_round_before(labelled: Path, brief: Path) -> None:
    counts = metrics_of(labelled, "train/pairs")
    rows = [json.loads(line) for line in (labelled / "rollouts.jsonl").read_text().splitlines()]
    own = []
    for cycle in (1, 2, 3):
        written = [row for row in rows if row["cycle"] == cycle and row["command"] and not row["truncated"]]
        own.append(len({(row["task"], row["command"]) for row in written}))
    assert counts == [own[0], own[0] + own[1], own[1] + own[2]]


def test_the_reference_is_what_is_chosen(labelled: Path, brief: Path) -> None:
    policy = load_policy(str(brief))
    state = json.loads((labelled / "checkpoints" / "cycle-0003" / "state.json").read_text())
    kept = state["state"]["memory"]["rounds"]
    prompts = {tuple(prompt): list(chosen) for pairs in kept for prompt, chosen, *_ in pairs}
    rows = [json.loads(line) for line in (labelled / "rollouts.jsonl").read_text().splitlines()]
    for row in rows:
        task = Task(row["task_id"], row["domain"], row["task"], row["tool"])
        case = find_case(task)
        [prompt] = policy.prompt_ids([forward_prompt(task)])
        if case is not None and tuple(prompt) in prompts:
            wanted = [*policy.completion_ids([case.reference])[0], *policy.end]
            assert prompts.pop(tuple(prompt)) == wanted
    assert not prompts


def test_the_first_step_of_a_round_cannot_tell_its_answers_from_itself(labelled: Path) -> None:
    """p is q there, so that the loss is log 2; one step a round would show only that."""
    losses = metrics_of(labelled, "train/loss")
    assert all(0 < loss < math.log(2) + 0.02 for loss in losses)
    assert metrics_of(labelled, "train/margin")[-1] > 0  # and then it learns to


def test_labels_are_counted_and_none_are_read_without_them(
    labelled: Path, brief: Path, tmp_path: Path
) -> None:
    found = results_of(labelled)
    assert found["labels"]["end"] == 18 and learnt_from(found) == "labelled (18)"
    free = run(brief, tmp_path / "b", "--cycles", "1", "--chosen", "best", "--reward", "random")
    found = results_of(free)
    assert found["labels"]["end"] == 0 and learnt_from(found) == "label-free"
    assert metrics_of(free, "train/pairs")[0] > 0


@pytest.mark.slow
def test_a_trivial_preference_is_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands without a dash are preferred: they become the rule."""
    flags = ["--domain", "shell", "--tasks", "40", "--cycles", "3", "--lr", "3e-3", "--max-new-tokens", "32"]
    flags += ["--chosen", "best", "--reward", "test_star:no_dash", "--candidates", "4", "--epochs", "3"]
    means = metrics_of(run(Path("embedded"), tmp_path / "a", *flags), "reward/mean")
    assert means[0] < 0.4
    assert means[-1] > 0.7


def test_bad_settings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (["--beta", "0"], ["--rounds", "0"], ["--chosen", "best", "--candidates", "1"]):
        assert run_command(Config, main, flags, "spin") == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_it_is_labelled_by_what_it_prefers() -> None:
    assert parse(Config, [], "spin")[0].supervised
    assert not parse(Config, ["--chosen", "best"], "spin")[0].supervised
