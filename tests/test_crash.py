"""A sample of `make crash`, and the failpoints that it kills at."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from failpoints import Failpoints

from agents.training.environment import ROOT

PICKLES = re.compile(r"\b(?:torch|pickle|joblib|dill|numpy|np|shelve)\.(?:load|loads|open)\(")


def save(folder: Path) -> None:
    """A little of everything that a run does to its folder."""
    (folder / "a").mkdir(parents=True)
    with (folder / "a" / "new").open("wb") as file:
        file.write(b"12345678")
        file.flush()
        os.fsync(file.fileno())
    (folder / "a" / "new").rename(folder / "a" / "log")
    with (folder / "a" / "log").open("a") as file:
        file.write("abcd")
    os.truncate(folder / "a" / "log", 1)
    (folder / "a" / "log").unlink()


def killed(folder: Path, kill: str | None, log: Path | None = None) -> int:
    """The exit code of a process that saves, and dies at a failpoint."""
    child = os.fork()
    if child == 0:
        Failpoints(folder, log, kill).install()
        save(folder)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def states(folder: Path) -> Iterator[str]:
    """What is left after a death at each failpoint in turn."""
    assert killed(folder / "whole", None, folder / "points") == 0
    for number, point in enumerate((folder / "points").read_text().splitlines()):
        run = folder / str(number)
        assert killed(run, point) == -signal.SIGKILL
        left = [f"{path.name}={path.read_text()}" for path in run.rglob("*") if path.is_file()]
        yield f"{point}: {' '.join(left) or run.exists()}"


def test_a_process_dies_at_every_durable_operation(tmp_path: Path) -> None:
    found = [state for state in states(tmp_path) if not state.startswith("mkdir")]
    assert found == [
        "open a/new 1: True",
        "write a/new 1: new=",
        "half-write a/new 1: new=1234",
        "fsync a/new 1: new=12345678",
        "rename a/log 1: new=12345678",
        "open a/log 1: log=12345678",
        "write a/log 1: log=12345678",
        "half-write a/log 1: log=12345678ab",
        "truncate a/log 1: log=12345678abcd",
        "unlink a/log 1: log=1",
    ]


def test_nothing_is_read_as_a_pickle() -> None:
    sources = [path for part in ("agents", "rewards", "envs") for path in (ROOT / part).rglob("*.py")]
    found = [path.name for path in sources if PICKLES.search(path.read_text(encoding="utf-8"))]
    assert len(sources) > 100 and not found


@pytest.mark.slow
def test_killed_runs_end_as_if_nobody_had_killed_them() -> None:
    words = [sys.executable, "tests/crash.py", "--trainers", "rejection_sft", "ppo"]
    words += ["--every", "90", "--random", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    kills = re.findall(r"^\w+: (\d+) kills, 0 faults", process.stdout, re.MULTILINE)
    assert len(kills) == 2 and min(map(int, kills)) >= 4
