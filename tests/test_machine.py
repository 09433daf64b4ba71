"""What a machine does to a run, and how the run goes on."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agents import ppo, rejection_sft
from agents.cli.command import run_command

TINY = ["--domain", "network", "--force", "--no-gates", "--max-new-tokens", "12", "--reward", "random"]
TINY += ["--tasks", "6", "--eval-tasks", "4", "--eval-subset", "3", "--eval-samples", "2", "--cycles", "2"]
TRAINERS = {"rejection_sft": rejection_sft, "ppo": ppo}
LOGS = ("metrics.jsonl", "rollouts.jsonl", "truth.jsonl", "self_improvement_results.json")
GO_ON = "go on from the last finished cycle with python -m agents.{} --resume {}\n"


def command(agent: str, *argv: str) -> int:
    trainer: Any = TRAINERS[agent]
    return run_command(trainer.Config, trainer.main, argv, agent)


def start(agent: str, model: Path, folder: Path) -> int:
    return command(agent, "--model", str(model), *TINY, "--output", str(folder.parent), "--name", folder.name)


def written(folder: Path) -> dict[str, bytes]:
    """What must be the same bytes, wherever the run is."""
    last = max((folder / "checkpoints").glob("cycle-*"))
    files = {name: (folder / name).read_bytes() for name in LOGS}
    files |= {path.name: path.read_bytes() for path in last.glob("*.safetensors")}
    return {name: content.replace(str(folder.parent).encode(), b"") for name, content in files.items()}


@pytest.fixture(scope="module")
def whole(brief: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, bytes]]:
    """What an uninterrupted run of an agent writes; made once."""
    made: dict[str, dict[str, bytes]] = {}

    def of(agent: str) -> dict[str, bytes]:
        if agent not in made:
            folder = tmp_path_factory.mktemp(agent) / "a"
            assert start(agent, brief, folder) == 0
            made[agent] = written(folder)
        return made[agent]

    return of


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 1 MiB, in memory."""
    where = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(where)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=False)


def fill(where: Path, left: int) -> Path:
    """A file that leaves so many KiB."""
    filler = where / "filler"
    with filler.open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(where).free - left * 1024)))
    return filler


# ---- the disk ----


@pytest.mark.slow
@pytest.mark.parametrize(
    ("agent", "left"),
    [
        *(("rejection_sft", left) for left in (4, 20, 56, 80, 116, 128)),
        *(("ppo", left) for left in (48, 124)),
    ],
)
def test_a_full_disk_is_one_line_and_loses_nothing(
    small_disk: Path, brief: Path, whole: Any, agent: str, left: int, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = whole(agent)
    shutil.rmtree(small_disk / "runs", ignore_errors=True)
    folder = small_disk / "runs" / "a"
    filler = fill(small_disk, left)
    capfd.readouterr()
    assert start(agent, brief, folder) == 1
    said = capfd.readouterr().err
    assert (
        said.startswith("error: ") and said.count("\n") == 1 and "the disk is full: free some space" in said
    )
    if not folder.exists():  # it was full before the run had begun
        filler.unlink()
        return
    assert said.endswith(GO_ON.format(agent, folder))
    filler.unlink()
    assert command(agent, "--resume", str(folder)) == 0
    assert written(folder) == expected
