"""The first batch of a run: shown where the model is not ours, and refused where nothing can be learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agents.cli.command import run_command
from agents.policy.load import load_policy
from agents.rejection_sft import Config, main
from agents.training.preflight import described, fault
from agents.training.rollouts import Rollout
from envs.types import Completion, Score, Task

ARGUMENTS = ["--cycles", "1", "--tasks", "4", "--eval-tasks", "2", "--eval-subset", "1", "--domain", "shell"]


def rollout(task: str, text: str, closed: bool = False) -> Rollout:
    parts = {"gate/tool": 0.0} if closed else {}
    return Rollout(Task(task, "shell", task), Completion(text), Score(0.0, parts))


def test_most_of_a_batch_must_be_a_command_that_passes_the_gates() -> None:
    good = [rollout(f"task {n}", f"ls {n}") for n in range(4)]
    assert fault(good) == ""
    gated = [rollout(f"task {n}", f"ls {n}", closed=True) for n in range(3)]
    assert fault([*good, *gated]) == ""
    assert "4 of the 7 first commands are invalid" in fault([*good[:3], *gated, rollout("x", "Sure, I can.")])


def test_most_of_a_batch_must_not_be_one_command() -> None:
    same = [rollout(f"task {n}", "ls") for n in range(4)]
    assert fault(same) == "4 of the 4 first commands are the same, 'ls'"
    assert fault([*same[:2], rollout("a", "pwd"), rollout("b", "who")]) == ""
    assert fault([rollout("one task", "ls")] * 4) == ""  # which has one right command


@pytest.mark.slow
def test_a_model_that_writes_nonsense_is_refused_unless_forced(
    foreign_mistral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        *ARGUMENTS,
        "--model",
        str(foreign_mistral),
        "--reward",
        "likelihood",
        "--output",
        str(tmp_path),
    ]
    assert run_command(Config, main, arguments) == 2
    shown = capsys.readouterr()
    assert "of the 8 first commands are invalid" in shown.err
    assert "--shots 8" in shown.err and "--force" in shown.err
    assert "prompt          <s>[INST] Write one shell command" in shown.out
    assert not list(tmp_path.iterdir())
    assert run_command(Config, main, [*arguments, "--force"]) == 0
    assert "preflight: " in capsys.readouterr().out


def test_what_is_shown_has_all_that_one_needs_to_see(foreign_mistral: Path) -> None:
    policy: Any = load_policy(str(foreign_mistral))
    score = Score(0.25, {}, "list everything")
    answer = Completion("```bash\nls -a\n```")
    text = described(policy, Rollout(Task("t", "shell", "list all files", "ls"), answer, score))
    for part in (
        "list all files",
        "```bash",
        "command         ls -a",
        "score           0.250",
        "list everything",
    ):
        assert part in text
