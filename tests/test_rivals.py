"""What every rival does: same seed same bytes, resumed as uninterrupted, resumed by its own command."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import kill_after_the_first_of_three

from agents import rejection_sft
from agents.cli.command import run_command

RIVALS = {
    "constitutional": ["--margin", "0"],
    "reward_model": ["--batch-size", "4"],
    "self_rewarding": [],
    "spin": [],
    "star": ["--reward", "random", "--candidates", "1"],
}
SMALL = ["--domain", "network", "--force", "--no-gates", "--max-new-tokens", "12", "--tasks", "6"]
SMALL += ["--eval-tasks", "3", "--eval-subset", "2", "--eval-samples", "1"]
LOGS = ("metrics.jsonl", "rollouts.jsonl", "truth.jsonl", "progress.json", "self_improvement_results.json")


def run(rival: str, model: Path, folder: Path, *flags: str) -> Path:
    """Runs the command in this process -> the run's folder."""
    command: Any = importlib.import_module(f"agents.{rival}")
    argv = [*words(rival, model, folder), *flags]
    assert run_command(command.Config, command.main, argv, rival) == 0
    return folder


def words(rival: str, model: Path, folder: Path) -> list[str]:
    place = ["--model", str(model), "--output", str(folder.parent), "--name", folder.name]
    return [*SMALL, *RIVALS[rival], *place]


def written(folder: Path) -> dict[str, bytes]:
    """What must be the same bytes for the same seed, whatever the folder is called."""
    last = max((folder / "checkpoints").iterdir())
    found = {path.name: path.read_bytes() for path in last.glob("*.safetensors")}
    for path in (last / "reward_model").glob("*"):
        found[f"reward_model/{path.name}"] = path.read_bytes()
    for name in LOGS:
        found[name] = (folder / name).read_bytes().replace(str(folder.parent).encode(), b"")
    return found


@pytest.fixture(scope="module", params=sorted(RIVALS))
def whole(request: pytest.FixtureRequest, brief: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A rival and an uninterrupted run of it. A test that changes it takes a copy."""
    rival = request.param
    return rival, run(rival, brief, tmp_path_factory.mktemp(rival) / "a", "--cycles", "3")


@pytest.mark.slow
def test_it_learns_something_and_says_what_it_used(whole: Any) -> None:
    _, folder = whole
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["train/steps"] > 0 for row in rows if "train/steps" in row] == [True] * 3
    assert json.loads((folder / "progress.json").read_text())["usage"]["answers"] > 0


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(whole: Any, brief: Path, tmp_path: Path) -> None:
    rival, folder = whole
    killed = tmp_path / "killed" / "a"
    kill_after_the_first_of_three(rival, [*words(rival, brief, killed), "--cycles", "3"], tmp_path)
    assert not (killed / "self_improvement_results.json").exists()
    command: Any = importlib.import_module(f"agents.{rival}")
    assert run_command(command.Config, command.main, ["--resume", str(killed)], rival) == 0
    assert written(killed) == written(folder)


@pytest.mark.slow
def test_same_seed_same_bytes_and_other_seed_others(whole: Any, brief: Path, tmp_path: Path) -> None:
    rival, folder = whole
    assert written(run(rival, brief, tmp_path / "a", "--cycles", "3")) == written(folder)
    other = run(rival, brief, tmp_path / "other", "--cycles", "3", "--seed", "1")
    weights = "adapter_model.safetensors"
    if rival == "reward_model":
        weights = f"reward_model/{weights}"
    assert written(other)[weights] != written(folder)[weights]


@pytest.mark.slow
@pytest.mark.parametrize("rival", ["constitutional", "self_rewarding", "spin"])
def test_the_reference_of_each_round_is_the_model_as_it_began(
    rival: str, brief: Path, tmp_path: Path
) -> None:
    """One step a round sees the reference itself: no log-ratio. The base would show one in the second."""
    flags = ["--cycles", "2", "--batch-size", "200", "--lr", "1e-2"]
    if rival == "constitutional":
        flags += ["--revise-cycles", "0"]
    folder = run(rival, brief, tmp_path / "a", *flags)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rewards = [row["train/chosen_reward"] for row in rows if "train/chosen_reward" in row]
    assert rewards == [pytest.approx(0, abs=1e-5)] * 2


@pytest.mark.slow
def test_another_trainer_does_not_resume_it(
    whole: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rival, folder = whole
    copy = Path(shutil.copytree(folder, tmp_path / "a"))
    argv = ["--resume", str(copy), "--cycles", "4"]
    assert run_command(rejection_sft.Config, rejection_sft.main, argv, "rejection_sft") == 2
    message = f"error: --resume {copy}: is a run of agents.{rival}: resume it with that command\n"
    assert capsys.readouterr().err == message
