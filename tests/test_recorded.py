"""Learning from the candidates of an earlier run: the same candidates, other rewards and updates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from agents.cli.command import run_command
from agents.rejection_sft import Config, main

# For a model with random weights, which writes no command: nothing is executed, and no gate closes.
SMALL = ["--domain", "network", "--force", "--no-gates", "--max-new-tokens", "12", "--cycles", "1"]
SMALL += ["--tasks", "4", "--eval-tasks", "3", "--eval-subset", "3", "--eval-samples", "2"]


def run(model: Path, output: Path, name: str, *flags: str) -> Path:
    argv = ["--model", str(model), *SMALL, "--output", str(output), "--name", name, *flags]
    assert run_command(Config, main, argv, "rejection_sft") == 0
    return output / name


def rows_of(folder: Path, phase: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    return [row for row in rows if row["phase"] == phase]


def commands(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["task"], row["command"]) for row in rows]


def refused(
    model: Path, output: Path, rollouts: Path, capsys: pytest.CaptureFixture[str], *flags: str
) -> str:
    """What the command says of a run whose candidates it does not take."""
    argv = ["--model", str(model), *SMALL, "--output", str(output), "--rollouts", str(rollouts)]
    assert run_command(Config, main, [*argv, "--reward", "random", *flags], "rejection_sft") == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def earlier(brief: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one cycle of 4 tasks x 3 candidates, the greedy one among them; 2 tasks after the update."""
    output = tmp_path_factory.mktemp("earlier")
    return run(brief, output, "s0", "--reward", "random", "--include-greedy", "--after-tasks", "2")


def test_a_greedy_candidate_and_fewer_tasks_after(brief: Path, earlier: Path) -> None:
    written = rows_of(earlier, "before")
    assert len(written) == 12 and len(rows_of(earlier, "after")) == 6
    greedy = run(brief, earlier.parent, "one", "--reward", "random", "--candidates", "1", "--include-greedy")
    firsts = [written[place] for place in range(0, 12, 3)]
    assert commands(firsts) == commands(rows_of(greedy, "before"))
    assert {row["command"] for row in written} != {row["command"] for row in firsts}


def test_truncated_sampling_is_written_and_checked(
    brief: Path, earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one token to choose from, every candidate is the greedy command."""
    narrow = run(brief, tmp_path, "narrow", "--reward", "random", "--top-k", "1", "--candidates", "2")
    firsts = rows_of(earlier, "before")[::3]
    assert commands(rows_of(narrow, "before")) == [row for row in commands(firsts) for _ in range(2)]
    for flag, value in (("--top-k", "-1"), ("--top-p", "0"), ("--top-p", "1.5")):
        assert run_command(Config, main, ["--model", str(brief), *SMALL, flag, value], "rejection_sft") == 2
        assert "must be" in capsys.readouterr().err


def test_another_reward_chooses_among_the_same_candidates(brief: Path, earlier: Path, tmp_path: Path) -> None:
    again = run(
        brief, tmp_path, "again", "--reward", "likelihood", "--rollouts", str(earlier.parent / "s{seed}")
    )
    theirs, ours = rows_of(earlier, "before"), rows_of(again, "before")
    for row in theirs + ours:
        for name in ("score", "parts", "reason", "accepted"):
            del row[name]
    assert ours == theirs
    scores = [row["score"] for row in rows_of(again, "before")]
    assert scores != [row["score"] for row in rows_of(earlier, "before")]
    assert f"rollouts: {earlier}" in (again / "config.yaml").read_text().replace('"', "")


def test_a_task_that_comes_again_is_a_group_of_its_own(brief: Path, tmp_path: Path) -> None:
    source = tmp_path / "tasks.jsonl"
    source.write_text('{"task": "ping db.test twice"}\n{"task": "scan port 22 of web1.test"}\n')
    flags = ["--reward", "random", "--task-source", str(source), "--tasks", "4"]
    first = run(brief, tmp_path, "first", *flags)
    again = run(brief, tmp_path, "again", *flags, "--rollouts", str(first))
    assert commands(rows_of(again, "before")) == commands(rows_of(first, "before"))
    assert len(rows_of(again, "before")) == 12


def test_cycles_share_the_tasks(brief: Path, earlier: Path, tmp_path: Path) -> None:
    flags = ["--cycles", "2", "--tasks", "2", "--candidates", "2", "--reward", "random"]
    again = run(brief, tmp_path, "again", *flags, "--rollouts", str(earlier))
    theirs = rows_of(earlier, "before")
    expected = [row for place, row in enumerate(theirs) if place % 3 < 2]
    assert commands(rows_of(again, "before")) == commands(expected)
    assert [row["cycle"] for row in rows_of(again, "before")] == [1] * 4 + [2] * 4


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tasks", "5"], "its first cycle has 4 tasks, and --cycles 1 x --tasks 5 need 5: ask for fewer"),
        (["--candidates", "4"], "it has 3 candidates of a task: give --candidates 3 or fewer"),
        (["--shots", "1"], "shots 0 and 1: both runs must begin with the same model and prompts"),
        (["--top-k", "5"], "its candidates are written: leave --top-k and --top-p out"),
        (["--temperature", "1.5"], "temperature 0.7 and 1.5: both runs must begin with the same"),
    ],
)
def test_what_does_not_fit_is_refused(
    brief: Path,
    earlier: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    said: str,
) -> None:
    assert said in refused(brief, tmp_path, earlier, capsys, *flags)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_log_is_refused(
    brief: Path, earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(earlier, tmp_path / "copy"))
    lines = (copy / "rollouts.jsonl").read_text().splitlines(keepends=True)
    row = json.loads(lines[1])
    del row["token_ids"]
    out = tmp_path / "out"

    (copy / "rollouts.jsonl").write_text("".join([lines[0], json.dumps(row) + "\n", *lines[2:]]))
    damaged = "rollouts.jsonl:2: the line is damaged: restore it, or take another run"
    assert damaged in refused(brief, out, copy, capsys)

    (copy / "rollouts.jsonl").unlink()
    assert "the run has no rollouts.jsonl yet" in refused(brief, out, copy, capsys)

    assert "no run is there" in refused(brief, out, tmp_path, capsys)


def test_a_held_out_task_is_refused(
    brief: Path, earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from agents.evaluation.heldout import HeldOut

    copy = Path(shutil.copytree(earlier, tmp_path / "copy"))
    held_out = next(iter(HeldOut("network", 3, 3, 2, 0.7, 12).texts))
    lines = (copy / "rollouts.jsonl").read_text().splitlines()
    row = {**json.loads(lines[0]), "task": held_out}
    (copy / "rollouts.jsonl").write_text("\n".join([json.dumps(row), *lines[1:]]) + "\n")
    assert "rollouts.jsonl:1: task: a held-out task" in refused(brief, tmp_path / "out", copy, capsys)
