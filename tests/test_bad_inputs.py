"""Wrong input of every command is refused in a line, at once, and nothing is written: see bad_inputs.yaml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import bad_inputs
from bad_inputs import Case

ROOT = Path(__file__).resolve().parent.parent
HANGS = 600  # seconds


def test_every_command_refuses_every_bad_input() -> None:
    """A case that hangs is killed after some seconds, and named. All of them take half a minute of a core."""
    command = [sys.executable, str(Path(bad_inputs.__file__)), "--json"]
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=HANGS, env=path)
    rows = json.loads(done.stdout)
    wrong = []
    for row in rows:
        case = row["case"]
        if row["faults"]:
            wrong.append(f"{case['command']} {case['argv'][:99]}: {row['faults']}: {row['said'][:300]}")
    assert wrong == []
    assert len(rows) >= 300
    commands = {path.stem for path in (ROOT / "agents").glob("[a-z]*.py")}
    assert {row["case"]["command"] for row in rows} == commands


def test_some_of_them_in_a_python_of_their_own(tmp_path: Path) -> None:
    files, cases = bad_inputs.read_table()
    folder = tmp_path / "here"
    folder.mkdir()
    bad_inputs.lay_out(folder, files)
    some = [
        Case("dpo", "--config pipe.yaml", ""),
        Case("play", "--adapter adapters/ia3", ""),
        Case("grpo", "--trl loss_type=xyz", ""),
        Case("evaluate", "runs/flipped", ""),
    ]
    before = Path.cwd()
    os.chdir(folder)
    try:
        for case in cases:
            if any((case.command, case.argv) == (one.command, one.argv) for one in some):
                assert bad_inputs.outcome_of(case, folder, tmp_path, processes=True).faults == []
    finally:
        os.chdir(before)


def test_the_table_finds_what_is_wrong(tmp_path: Path) -> None:
    """A command that is right, one that says something else, and one that writes a file are no refusals."""

    def faults(argv: str, says: str) -> list[str]:
        case = Case("play", argv, says)
        return bad_inputs.outcome_of(case, tmp_path, tmp_path.parent, processes=True).faults

    assert "says something else" in faults("--task ''", "--task: must be filled in")
    assert faults("--task ''", "--task: must not be empty: ...") == []
    assert faults("--help", "...")[:1] == ["ends with 0"]


def test_bytes_that_are_not_utf8_are_refused_on_the_command_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "agents.play", "--task", b"list \xff files"]
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --task: has a byte that is not UTF-8: remove it\n"
