"""The command that is taken out of an answer, by a table of answers as models write them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from references import reference

from agents import play
from agents.cli.command import run_command
from envs.answers import take_out
from envs.domain import load_domain
from envs.types import InputError

TABLE = yaml.safe_load((Path(__file__).parent / "answers.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("row", TABLE, ids=lambda row: repr(row["answer"])[:60])
def test_the_command_of_an_answer(row: dict[str, str | None]) -> None:
    found = take_out(str(row["answer"]))
    assert found.command == row["command"]
    assert bool(found.reason) == (found.command is None)


def test_the_table_has_both_kinds_and_enough_of_them() -> None:
    without = [row for row in TABLE if row["command"] is None]
    assert len(TABLE) >= 90 and len(without) >= 10


def test_what_is_taken_out_is_taken_out_of_itself_unchanged() -> None:
    for row in TABLE:
        if row["command"] is not None:
            assert take_out(row["command"]).command == row["command"]


@pytest.mark.parametrize(
    ("answer", "plain"),
    [("ls -l", True), (" ls -l\n", True), ("`ls -l`", False), ("Command: ls -l", False), ("", False)],
)
def test_plain_answers_are_nothing_but_the_command(answer: str, plain: bool) -> None:
    assert take_out(answer).plain is plain


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("<think>hm", "a thought without an end"),
        ("I cannot do that.", "no command"),
        ("```\nls\n```\n```\npwd\n```", "2 different commands"),
        ("```\ncd x\nls\n```", "several commands in one block"),
    ],
)
def test_the_reason_says_why_there_is_none(answer: str, reason: str) -> None:
    assert take_out(answer).reason == reason


@pytest.mark.parametrize("domain", ["network", "shell", "sql"])
def test_right_commands_are_taken_out_unchanged(domain: str) -> None:
    known = load_domain(domain)
    for task in known.tasks("heldout", 200, "answers"):
        command = reference(task)
        assert take_out(command).command == command


def test_play_extracts_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"answer": "```bash\\nls -l\\n```"}\n{"answer": "I cannot do that."}\n')
    assert run_command(play.Config, play.main, ["--extract", str(path)], "play") == 0
    assert capsys.readouterr().out == '{"command": "ls -l"}\n{"command": null}\n'
    path.write_text('{"answer": 3}\n')
    with pytest.raises(InputError, match=r"answers\.jsonl:1: answer: must be a text"):
        play.main(play.Config(extract=str(path)))
    with pytest.raises(InputError, match="no such file"):
        play.main(play.Config(extract=str(tmp_path / "no.jsonl")))
