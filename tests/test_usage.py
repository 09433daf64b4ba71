"""What a run consumed: counted by the policy, evaluation and watching aside, and told by results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from agents import spin, star
from agents.cli.command import run_command
from agents.policy.labels import learnt_from
from agents.policy.usage import Usage
from agents.rejection_sft import Config, main
from agents.studies.runs import read_run
from agents.training.monitor import PROBES
from envs.prompts import forward_prompt, inverse_prompt, judge_prompt, rate_prompt
from envs.types import Task

TASK = Task("t", "shell", "list all files", "ls")
ASKED = [forward_prompt(TASK), inverse_prompt(TASK, "ls")]
ASKED += [judge_prompt(TASK, "ls"), rate_prompt(TASK, "x")]
SMALL = ["--domain", "network", "--tasks", "3", "--candidates", "2", "--eval-tasks", "3"]
SMALL += [
    "--eval-subset",
    "2",
    "--eval-samples",
    "1",
    "--max-new-tokens",
    "8",
    "--no-gates",
    "--force",
    "--cycles",
    "2",
]


def run(model: Path, folder: Path, *flags: str) -> dict[str, Any]:
    """Runs rejection-sampling SFT in this process -> its results."""
    argv = ["--model", str(model), "--output", str(folder.parent), "--name", folder.name, *SMALL, *flags]
    assert run_command(Config, main, argv, "rejection_sft") == 0
    return results(folder)


def results(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "progress.json").read_text()))


def test_opinions_are_counted_once_a_prompt_and_nothing_while_it_is_stopped() -> None:
    usage = Usage()
    usage.asked([*ASKED, *ASKED, "Is this right? yes"])
    usage.wrote([3, 4])
    usage.scored(10)
    with usage.stopped(), usage.stopped():
        usage.asked(ASKED)
        usage.wrote([5])
        usage.scored(5)
    usage.wrote([1])
    assert usage == Usage(judge_calls=2, answers=3, tokens_written=8, tokens_scored=10)


def test_the_policy_counts_what_it_writes_and_scores(policy: Any) -> None:
    policy.usage = Usage()
    written = policy.generate(ASKED, 2, temperature=1.0, max_new_tokens=5, seed=1)
    lengths = [len(completion.token_ids) for row in written for completion in row]
    assert (policy.usage.answers, policy.usage.tokens_written) == (8, sum(lengths))
    policy.logprobs(ASKED, ["yes"] * 4)
    prompts = sum(map(len, policy.prompt_ids(ASKED)))
    answers = 4 * len(policy.completion_ids(["yes"])[0])
    assert policy.usage.tokens_scored == prompts + answers
    assert policy.usage.judge_calls == 4  # two opinions, asked for twice


@pytest.fixture(scope="module")
def judged(brief: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two cycles that judges its own commands."""
    folder = tmp_path_factory.mktemp("usage") / "judged"
    run(brief, folder, "--reward", "self-judge")
    return folder


def test_a_judge_is_called_once_for_each_different_command(judged: Path) -> None:
    rows = [json.loads(line) for line in (judged / "rollouts.jsonl").read_text().splitlines()]
    learnt = [row for row in rows if row["phase"] == "before"]
    asked = {(row["cycle"], row["task"], row["command"]) for row in learnt if row["command"]}
    usage = results(judged)["usage"]
    assert usage["judge_calls"] == len(asked) > 0
    assert usage["answers"] == len(learnt) == 12  # those after an update only measure
    assert usage["models"] == {}
    assert learnt_from(results(judged)) == "label-free"


def test_counters_go_on_after_a_resume(judged: Path, brief: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(judged, folder)
    shutil.rmtree(folder / "checkpoints" / "cycle-0002")
    argv = ["--resume", str(folder)]
    assert run_command(Config, main, argv, "rejection_sft") == 0
    assert results(folder)["usage"] == results(judged)["usage"]


def test_who_learnt_from_what(brief: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(brief, tmp_path / "a", "--reward", "similarity", "--cycles", "1")
    [(name, parameters)] = found["usage"]["models"].items()
    assert name == "all-MiniLM-L6-v2" and parameters > 20_000_000
    assert f"with all-MiniLM-L6-v2 ({parameters:,} parameters)" in capsys.readouterr().out
    assert read_run(tmp_path / "a").usage["other_models"] == parameters
    assert learnt_from({**found, "labelled": True}) == "labelled (0)"
    assert learnt_from({"labels": {"start": 5, "end": 8}, "usage": {"preferences": 2}}) == "labelled (10)"


def test_what_is_drawn_before_the_first_cycle_counts_once(brief: Path, tmp_path: Path) -> None:
    """The model writes tasks for `--keep best`; a run that goes on writes them again."""
    whole = run(brief, tmp_path / "whole", "--reward", "random", "--task-source", "model", "--keep", "best")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "cycle-0002")
    assert run_command(Config, main, ["--resume", str(tmp_path / "cut")], "rejection_sft") == 0
    assert results(tmp_path / "cut")["usage"] == whole["usage"]
    assert whole["usage"]["answers"] > 12  # those of the cycles alone


@pytest.mark.parametrize(("agent", "counted"), [(spin, False), (star, True)])
def test_scores_count_where_something_is_learnt_from_them(
    agent: Any, counted: bool, brief: Path, tmp_path: Path
) -> None:
    """SPIN with references only watches the score; STaR without hints takes it for right or wrong."""
    name = agent.__name__.rpartition(".")[2]
    flags = ["--cycles", "1", "--reward", "self-judge", "--output", str(tmp_path), "--name", "a"]
    flags += [] if agent is spin else ["--no-rationalize", "--threshold", "0"]
    words = ["--model", str(brief), *SMALL, *flags]
    assert run_command(agent.Config, agent.main, words, name) == 0
    assert (results(tmp_path / "a")["usage"]["judge_calls"] > 0) == counted
    times = json.loads((tmp_path / "a" / "timings.jsonl").read_text().splitlines()[0])
    assert ("time/reward" in times) == counted


def test_verdicts_that_choose_the_checkpoint_are_labels(brief: Path, tmp_path: Path) -> None:
    flags = ["--cycles", "1", "--reward", "truth", "--output", str(tmp_path)]
    labels = []
    for keep in ("last", "best"):
        words = ["--model", str(brief), *SMALL, *flags, "--keep", keep, "--name", keep]
        assert run_command(star.Config, star.main, words, "star") == 0
        labels.append(results(tmp_path / keep)["labels"]["end"])
    assert labels[1] == labels[0] + PROBES
