"""What a machine does to a run, and how the run goes on."""

from __future__ import annotations

import functools
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from agents import evaluate
from agents.cli.command import run_command
from agents.evaluation import measure as measure_module
from agents.evaluation.heldout import HeldOut
from agents.policy.generate import Generator
from agents.policy.policy import Policy
from agents.training import disk, rollouts
from agents.training import loop as loop_module
from agents.training import session as session_module

TINY = ["--domain", "network", "--force", "--no-gates", "--max-new-tokens", "12", "--reward", "random"]
TINY += ["--tasks", "6", "--eval-tasks", "4", "--eval-subset", "3", "--eval-samples", "2", "--cycles", "2"]
LOGS = ("metrics.jsonl", "rollouts.jsonl", "truth.jsonl", "self_improvement_results.json")
GO_ON = "go on from the last finished cycle with python -m agents.{} --resume {}\n"


def command(agent: str, *argv: str) -> int:
    trainer = importlib.import_module(f"agents.{agent}")
    return run_command(trainer.Config, trainer.main, argv, agent)


def start(agent: str, model: Path, folder: Path, *flags: str) -> int:
    place = ["--output", str(folder.parent), "--name", folder.name]
    return command(agent, "--model", str(model), *TINY, *place, *flags)


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
        ("rejection_sft", 20),
        ("rejection_sft", 80),
        ("rejection_sft", 116),
        ("rejection_sft", 128),
        ("ppo", 124),
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


@pytest.mark.slow
def test_a_disk_that_becomes_read_only_is_one_line_and_loses_nothing(
    small_disk: Path, brief: Path, whole: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(small_disk / "runs", ignore_errors=True)
    folder = small_disk / "runs" / "a"
    assert start("rejection_sft", brief, folder, "--cycles", "1") == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    try:
        capfd.readouterr()
        assert command("rejection_sft", "--resume", str(folder), "--cycles", "2") == 1
        said = capfd.readouterr().err
        assert said.startswith(f"error: {folder}/") and said.count("\n") == 1
        assert ": the file system is read-only: make it writable, then go on with python -m agents" in said
        assert start("rejection_sft", brief, folder.with_name("b")) == 2
        said = capfd.readouterr().err
        assert said.startswith(f"error: --output {folder.parent}: cannot be written (")
        assert said.count("\n") == 1
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert command("rejection_sft", "--resume", str(folder), "--cycles", "2") == 0


@pytest.mark.slow
def test_checkpoints_may_be_on_another_file_system(
    small_disk: Path, brief: Path, tmp_path: Path, whole: Any
) -> None:
    shutil.rmtree(small_disk / "runs", ignore_errors=True)
    stop_after_the_first_cycle(brief, tmp_path / "a")
    checkpoints = tmp_path / "a" / "checkpoints"
    shutil.move(checkpoints, small_disk / "checkpoints")
    checkpoints.symlink_to(small_disk / "checkpoints")
    assert command("rejection_sft", "--resume", str(tmp_path / "a")) == 0
    assert written(tmp_path / "a") == whole("rejection_sft")
    shutil.rmtree(small_disk / "checkpoints")


def test_an_output_that_is_a_file_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    for output, name, said in (
        (
            "file",
            "a",
            "error: --output {}/file: is no folder: choose another folder",
        ),
        (".", "file", "error: --name file: {}/file is a file: choose another --name"),
    ):
        flags = ["--output", str(tmp_path / output), "--name", name]
        assert command("rejection_sft", *TINY, *flags) == 2
        assert capfd.readouterr().err.startswith(said.format(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (
        tmp_path / "file"
    ).read_text() == "mine"


# ---- signals, clocks, sleep ----


class Stop(BaseException):
    """The run is killed."""


def stop_after_the_first_cycle(model: Path, folder: Path, *flags: str, agent: str = "rejection_sft") -> None:
    """A run that was killed after its first cycle."""

    def killed(display: Any, cycle: int, facts: Any) -> None:
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_module.Display, "finished", killed)
        with pytest.raises(Stop):
            start(agent, model, folder, *flags)


# Phase -> what a run calls in it.
PHASES = {
    "writing": (Generator, "_decode"),
    "scoring": (rollouts, "scored"),
    "training": (Policy, "token_logprobs"),
    "saving": (disk, "rename"),
    "evaluating": (HeldOut, "__call__"),
}


def once_in(phase: str, act: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """Acts once, in this phase of the next cycle."""
    owner, name = PHASES[phase]
    real, show = getattr(owner, name), loop_module.Display.phase
    acted = cycle = 0

    def noted(display: Any, number: int, what: str) -> None:
        nonlocal cycle
        cycle = number
        show(display, number, what)

    def called(*arguments: Any, **options: Any) -> Any:
        nonlocal acted
        if cycle and not acted and (phase != "saving" or "cycle-" in arguments[1].name):
            acted = 1
            act()
        return real(*arguments, **options)

    patch.setattr(loop_module.Display, "phase", noted)
    patch.setattr(owner, name, called)


@pytest.mark.slow
@pytest.mark.parametrize("turn", [0, 1])
def test_a_signal_in_any_phase_says_how_to_go_on_and_loses_nothing(
    turn: int, brief: Path, tmp_path: Path, whole: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """One run is ended in each of its phases and resumed, by SIGTERM and SIGINT in turn."""
    folder = tmp_path / "a"
    go_on = GO_ON.format("rejection_sft", folder)
    ends = [(signal.SIGTERM, (143, f"terminated: {go_on}")), (signal.SIGINT, (130, f"interrupted: {go_on}"))]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in a shell's background
    try:
        for place, phase in enumerate(PHASES):
            number, expected = ends[(place + turn) % 2]
            capfd.readouterr()
            with pytest.MonkeyPatch.context() as patch:
                once_in(phase, functools.partial(os.kill, os.getpid(), number), patch)
                if folder.exists():
                    code = command("rejection_sft", "--resume", str(folder))
                else:
                    code = start("rejection_sft", brief, folder)
            assert (code, capfd.readouterr().err) == expected, phase
            assert not (folder / ".holder").exists()
    finally:
        signal.signal(signal.SIGINT, before)
    assert command("rejection_sft", "--resume", str(folder)) == 0
    assert written(folder) == whole("rejection_sft")


def sleep() -> None:
    """The machine sleeps for a second: this process stops until another one wakes it."""
    with subprocess.Popen(["sh", "-c", f"sleep 1; kill -CONT {os.getpid()}"], start_new_session=True):
        os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.slow
def test_a_clock_that_jumps_and_a_machine_that_sleeps_change_nothing_but_times(
    brief: Path, tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, jumps = time.time, random.Random(0)
    monkeypatch.setattr(time, "time", lambda: now() + jumps.choice([-86_400, 0, 86_400]))
    once_in("writing", sleep, monkeypatch)
    folder = tmp_path / "a"
    assert start("rejection_sft", brief, folder) == 0
    assert written(folder) == whole("rejection_sft")
    rows = [json.loads(line) for line in (folder / "timings.jsonl").read_text().splitlines()]
    times = [value for row in rows for name, value in row.items() if name.startswith("time/")]
    assert len(times) > 10 and min(times) >= 0 and max(times) < 3600


# ---- memory ----

SIX = ("rejection_sft", "sft", "ppo", "dpo", "grpo", "rloo")
OWN = {"sft": ["--examples", "12"], "grpo": ["--batch-size", "6"], "rloo": ["--batch-size", "6"]}
ROOM = {"writing": 5, "scoring": 3, "training": 2}  # sequences that fit


class Memory:
    """Memory that runs out where more sequences go through a model than fit."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, room: dict[str, int], loader: Any = session_module
    ) -> None:
        self.room, self.phase, self.refused = room, "scoring", dict.fromkeys(room, 0)
        real = loader.load_policy

        def load(*arguments: Any, **options: Any) -> Policy:
            policy = real(*arguments, **options)
            self.watch(policy, monkeypatch)
            return policy

        monkeypatch.setattr(loader, "load_policy", load)

    def watch(self, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
        generate = policy.model.generate

        def writing(*arguments: Any, **options: Any) -> Any:
            self.phase = "writing"
            try:
                return generate(*arguments, **options)
            finally:
                self.phase = "scoring"

        monkeypatch.setattr(policy.model, "generate", writing)
        policy.model.get_input_embeddings().register_forward_pre_hook(self.look)

    def look(self, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        phase = "training" if torch.is_grad_enabled() else self.phase
        if len(inputs[0]) > self.room[phase]:
            self.refused[phase] += 1
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.slow
@pytest.mark.parametrize("agent", SIX)
def test_where_memory_runs_out_a_run_goes_on_with_half_and_a_resumed_one_is_the_same(
    agent: str,
    brief: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    flags = OWN.get(agent, [])
    with monkeypatch.context() as patch:
        memory = Memory(patch, ROOM)
        assert start(agent, brief, tmp_path / "whole" / "a", *flags) == 0
    assert all(memory.refused.values())
    said = capfd.readouterr().out
    for phase in ROOM:
        assert f"out of memory in {phase}: going on with " in said
    state = json.loads((tmp_path / "whole/a/checkpoints/cycle-0002/state.json").read_text())["state"]
    for phase, fits in ROOM.items():
        assert fits / 2 <= state["batch_sizes"][phase] <= fits

    with monkeypatch.context() as patch:
        Memory(patch, ROOM)
        stop_after_the_first_cycle(brief, tmp_path / "killed" / "a", *flags, agent=agent)
    assert command(agent, "--resume", str(tmp_path / "killed" / "a")) == 0  # with all the memory it wants
    assert written(tmp_path / "killed" / "a") == written(tmp_path / "whole" / "a")


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["grpo", "dpo"])
def test_a_step_in_parts_is_the_same_step(
    agent: str, brief: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the attempt that failed is left in it. DPO's parts weigh the same, however long they are."""
    flags = ["--cycles", "1", *OWN.get(agent, [])]
    assert start(agent, brief, tmp_path / "at_once" / "a", *flags) == 0
    memory = Memory(monkeypatch, {"writing": 128, "scoring": 128, "training": 2})
    assert start(agent, brief, tmp_path / "in_parts" / "a", *flags) == 0
    assert memory.refused["training"]
    found, wanted = (
        json.loads((tmp_path / name / "a" / "metrics.jsonl").read_text().splitlines()[-1])
        for name in ("in_parts", "at_once")
    )
    for name in ("train/loss", "train/grad_norm"):
        assert found[name] == pytest.approx(wanted[name], rel=0.1 if agent == "dpo" else 1e-3)
    assert found["train/steps"] == wanted["train/steps"]


def test_memory_that_holds_no_single_sequence_is_one_line(
    brief: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Memory(monkeypatch, {"writing": 128, "scoring": 128, "training": 0})
    folder = tmp_path / "a"
    assert start("rejection_sft", brief, folder) == 1
    wanted = "error: out of memory: free some, or choose a smaller model, then "
    assert capfd.readouterr().err == wanted + GO_ON.format("rejection_sft", folder)


@pytest.mark.slow
def test_an_evaluation_goes_on_where_memory_runs_out(
    brief: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    greedy: list[list[str]] = []
    real = measure_module.measure

    def measure(*arguments: Any, **options: Any) -> Any:
        answers = real(*arguments, **options)
        greedy.append([answer.greedy.answer for answer in answers])
        return answers

    monkeypatch.setattr(measure_module, "measure", measure)
    argv = ["--model", str(brief), "--domain", "network", "--tasks", "8", "--max-new-tokens", "12"]
    argv += ["--samples", "2", "--output", str(tmp_path)]
    assert run_command(evaluate.Config, evaluate.main, argv, "evaluate") == 0
    memory = Memory(monkeypatch, ROOM, measure_module)
    assert run_command(evaluate.Config, evaluate.main, argv, "evaluate") == 0
    assert memory.refused["writing"] and memory.refused["scoring"]
    assert "out of memory in writing: going on with " in capfd.readouterr().out
    assert any(greedy[0]) and greedy[0] == greedy[1]
