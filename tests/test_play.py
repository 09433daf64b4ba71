"""Best of N by hand: the best-scored command is the choice, doubt is said, and nothing is run."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agents.cli.command import run_command
from agents.play import Config, best_of, main, show, visible
from envs.types import Completion, Prompt, Score, Task


class Scripted:
    """A policy that writes the same commands for every task, and reconstructs each as itself in capitals."""

    def __init__(self, greedy: str, sampled: Sequence[str]) -> None:
        self.greedy, self.sampled = greedy, sampled
        self.tokens = self

    def as_text(self, prompt: Prompt) -> str:
        return prompt.text

    def generate(
        self, prompts: Sequence[Prompt], n: int = 1, *, temperature: float, **_: Any
    ) -> list[list[Completion]]:
        if prompts[0].kind == "inverse":
            return [[Completion(prompt.text.split("Command: ")[1].upper())] for prompt in prompts]
        commands = self.sampled if temperature > 0 else [self.greedy]
        written = [Completion(text) for text in commands]
        return [written for _ in prompts]

    def inverter(self, which: str) -> Any:
        return contextlib.nullcontext()


def scored(values: dict[str, float | None]) -> Any:
    def reward(
        tasks: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        def score(command: str) -> Score:
            if values[command] is None:
                return Score(None, reason="empty command")
            return Score(values[command])

        return [[score(command) for command in row] for row in commands_P_G]

    return reward


def answer(
    values: dict[str, float | None], greedy: str, sampled: Sequence[str], **settings: Any
) -> dict[str, Any]:
    policy: Any = Scripted(greedy, sampled)
    return best_of(policy, scored(values), Task("typed", "shell", "a task"), Config(**settings))


def test_the_best_scored_is_the_choice_and_equal_commands_are_one() -> None:
    found = answer({"x": 0.2, "b": 0.9, "c": 0.9}, "x", ["b", "x", "c", "b"])
    assert [(row["command"], row["written"], row["greedy"]) for row in found["candidates"]] == [
        ("b", 2, False),
        ("c", 1, False),
        ("x", 2, True),
    ]
    assert [row["reconstruction"] for row in found["candidates"]] == ["B", "C", "X"]
    assert (found["choice"], found["score"], found["trusted"]) == ("b", 0.9, True)


def test_doubt_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    low = answer({"x": 0.52}, "x", ["x"])
    assert low["trusted"] is False
    show(low)
    assert "WARNING: do not trust it: its score 0.520 is below 0.53" in capsys.readouterr().out
    assert answer({"x": 0.52}, "x", ["x"], trust=0.5)["trusted"] is True
    unknown = answer({"x": 0.52}, "x", ["x"], reward="similarity")
    assert unknown["trusted"] is None
    for other in ({"model": "mistral-7b"}, {"adapter": "runs/x"}, {"domain": "mine.yaml"}, {"gates": False}):
        assert answer({"x": 0.9}, "x", ["x"], **other)["trusted"] is None
    show(unknown)
    assert "trust: unknown for these settings" in capsys.readouterr().out


def test_what_abstains_is_last_and_no_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer({"": None, "x": -3.0}, "", ["x"], reward="lift")["choice"] == "x"
    nothing = answer({"": None}, "", [""])
    assert nothing["choice"] is None and nothing["trusted"] is False
    show(nothing)
    assert "no command could be scored: empty command" in capsys.readouterr().out


def test_hostile_text_is_visible(capsys: pytest.CaptureFixture[str]) -> None:
    assert visible("a\x1b[31mb\u202e") == "a\\x1b[31mb\\u202e"
    show(answer({"[red]x\x07": 0.9}, "[red]x\x07", ["[red]x\x07"]))
    printed = capsys.readouterr().out
    assert "[red]x\\x07" in printed and "\x07" not in printed


def test_the_command_on_the_embedded_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "sys.stdin", io.StringIO("show the first 5 lines of report.txt\n\nfrobnicate the quux\n")
    )
    assert run_command(Config, main, ["--model", "embedded", "--candidates", "4", "--json"], "play") == 0
    known, odd = map(json.loads, capsys.readouterr().out.splitlines())
    assert known["choice"] == "head -n 5 report.txt" and known["trusted"]
    assert odd["trusted"] is False
    assert list(tmp_path.iterdir()) == []  # nothing was run, nothing is left


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--domain", "all"], "--domain all: must be one domain"),
        (["--reward", "truth"], "--reward truth: needs labels"),
        (["--task", " "], "--task: must not be empty"),
        (["--candidates", "0"], "--candidates 0: must be 1 or more"),
        (["--temperature", "nan"], "--temperature nan: must be above 0"),
        (["--shots", "-1"], "--shots -1: must be 0 or more"),
    ],
)
def test_bad_input_is_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(Config, main, ["--model", "embedded", *flags], "play") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: " + message) and error.count("\n") == 1
