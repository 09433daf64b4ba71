"""Kills runs by SIGKILL at each durable operation in turn, and at random moments, and resumes them.

    make crash
    python tests/crash.py --trainers ppo --every 20 --random 3

A resumed run must end with the bytes of one that nobody killed: adapter, optimizer, logs, results, and each
point of TensorBoard's curves. Only the wall clock may differ. It prints a table, and is 1 at the end if a
resume failed or a byte differs. Ctrl-C prints the table so far.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import save_brief, save_pocket
from failpoints import Failpoints

ROOT = Path(__file__).resolve().parents[1]
# A run takes about a second: its model is tiny, and nothing is executed.
COMMON = "--domain network --force --no-gates --max-new-tokens 6 --cycles 3 --tasks 4 --candidates 2"
COMMON += " --eval-tasks 1 --eval-subset 1 --eval-samples 1"
TRAINERS = {
    "rejection_sft": "--reward channel --replay all --inverter ema",
    "ppo": "--reward random --batch-size 4 --epochs 1",
    "dpo": "--reward random",
    "grpo": "--reward random --batch-size 4 --lora-dropout 0.1 --inverter ema",
}
# Of each trainer: at every so manieth failpoint it is killed, and so many times at random. TRL's take longer.
PLAN = {"rejection_sft": (7, 10), "ppo": (4, 12), "dpo": (16, 4), "grpo": (16, 4)}
OPERATIONS = ("mkdir", "open", "write", "half-write", "fsync", "rename", "truncate", "unlink", "rmdir")
EVENTS = 25  # of so many operations on TensorBoard's file one is a failpoint
LATEST = 900.0  # seconds after which a run is stuck


# ---- a run in a process of its own ----


@dataclass(frozen=True)
class Trainer:
    """A trainer's run: always the same settings and the same place."""

    agent: str
    model: Path
    work: Path

    @property
    def folder(self) -> Path:
        """Where it runs."""
        return self.work / self.agent / "run"

    @property
    def printed(self) -> Path:
        """What its last process printed."""
        return self.work / f"{self.agent}.txt"

    @property
    def argv(self) -> list[str]:
        """The command that starts it, or goes on with it where it has begun."""
        if (self.folder / "config.yaml").exists():
            return ["--resume", str(self.folder)]
        place = ["--model", str(self.model), "--output", str(self.folder.parent), "--name", self.folder.name]
        return [*place, *COMMON.split(), *TRAINERS[self.agent].split()]

    def clear(self) -> None:
        """Nothing of an earlier run is left."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(
        self,
        argv: Sequence[str] | None = None,
        kill: str | None = None,
        log: Path | None = None,
        after: float | None = None,
    ) -> int:
        """Runs it, or goes on with it, in a fork of this process -> its exit code; -9 if it was killed.

        Args:
            argv: in place of its own.
            kill: the failpoint at which it dies.
            log: a file for the names of the failpoints that it reaches.
            after: seconds after which it is killed.
        """
        child = os.fork()
        if child == 0:
            os._exit(self._in_the_child(argv or self.argv, kill, log))
        started = time.monotonic()
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            passed = time.monotonic() - started
            if (after is not None and passed >= after) or passed > LATEST:
                os.kill(child, signal.SIGKILL)
                after = None
            time.sleep(0.002)

    def _in_the_child(self, argv: Sequence[str], kill: str | None, log: Path | None) -> int:
        try:
            output = os.open(self.printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            for descriptor in (1, 2):
                os.dup2(output, descriptor)
            refuse_pickles()
            if kill or log:
                Failpoints(self.folder, log, kill).install()
            module = importlib.import_module(f"agents.{self.agent}")
            command = importlib.import_module("agents.cli.command")
            code = command.run_command(module.Config, module.main, argv, self.agent)
            sys.stdout.flush()
            if log:
                log.with_suffix(".modules").write_text("\n".join(sys.modules))
            return int(code)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            return 70


def refuse_pickles() -> None:
    """From now on this process reads none: a checkpoint of ours, or of a library below us, holds none."""
    import torch

    def heard(event: str, arguments: Any) -> None:
        if event == "pickle.find_class":
            raise RuntimeError(f"a pickle was read: {arguments}")

    def load(*arguments: Any, **named: Any) -> Any:
        raise RuntimeError("torch.load was called")

    sys.addaudithook(heard)
    torch.load = load


# ---- what must be the same ----


def contents(folder: Path) -> dict[str, Any]:
    """What a run left, without the wall clock, the command line and the state of the checkout."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            continue
        if name == "environment.json":
            found[name] = {**json.loads(path.read_text()), "command": "", "git": ""}
        elif name == "timings.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [(row["cycle"], row["step"], sorted(row)) for row in rows]
        elif not name.startswith("tensorboard/"):
            found[name] = path.read_bytes()
    return {**found, **curves(folder / "tensorboard")}


def curves(folder: Path) -> dict[str, Any]:
    """What TensorBoard shows: the steps and values of curves and texts; of the wall clock the steps alone."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    found: dict[str, Any] = {}
    for tag in events.Tags()["tensors"]:
        shown = [(event.step, make_ndarray(event.tensor_proto).tolist()) for event in events.Tensors(tag)]
        timed = tag.startswith(("time/", "_hparams_"))
        found[f"tensorboard {tag}"] = [step for step, _ in shown] if timed else shown
    return found


def differences(expected: dict[str, Any], folder: Path) -> list[str]:
    """Names of what a run left otherwise than expected."""
    found = contents(folder)
    return sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))


# ---- the kills ----


@dataclass
class Tally:
    """What came of the kills of one trainer."""

    kills: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    faults: list[str] = field(default_factory=list)


class Crash:
    """All kills of one trainer."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.tally = trainer, Tally()
        self.points: list[str] = []
        self.seconds = 0.0

    def uninterrupted(self) -> None:
        """Reads the run of `elsewhere`, and makes one that notes its failpoints."""
        trainer = self.trainer
        self.expected = contents(trainer.folder)
        trainer.clear()
        log, started = trainer.work / "points.txt", time.monotonic()
        self._finish("a run that nobody killed", trainer.run(log=log))
        self.seconds = time.monotonic() - started
        self.points = thinned(log.read_text().splitlines())
        log.unlink()
        for name in log.with_suffix(".modules").read_text().splitlines():
            with contextlib.suppress(Exception):  # so that no fork imports anything
                importlib.import_module(name)

    def at(self, point: str, resumed_from: Path | None = None) -> None:
        """Kills the run at a failpoint, and resumes it."""
        self._begin(resumed_from)
        code = self.trainer.run(kill=point)
        where = f"{point}, in a resume" if resumed_from else point
        self._resume(where, "in a resume" if resumed_from else point.split()[0], code)

    def at_random(self, seconds: float) -> None:
        """Kills the run after some seconds, and resumes it."""
        self._begin(None)
        code = self.trainer.run(after=seconds)
        self._resume(f"{seconds:.3f} s", "at random", code)

    def killed_in_the_middle(self) -> tuple[Path, list[str]]:
        """A run that was killed while it saved its second cycle, and the failpoints of restoring it."""
        self._begin(None)
        self.trainer.run(kill="rename checkpoints/cycle-0002 1")
        copy = self.trainer.work / "killed"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.trainer.folder, copy)
        log = self.trainer.work / "points.txt"
        self._finish("a resume that nobody killed", self.trainer.run(log=log))
        points = thinned(log.read_text().splitlines())
        log.unlink()
        first = next(n for n, point in enumerate(points) if point.startswith("write rollouts.jsonl"))
        return copy, points[:first]

    def _begin(self, resumed_from: Path | None) -> None:
        self.trainer.clear()
        if resumed_from:
            shutil.copytree(resumed_from, self.trainer.folder)

    def _resume(self, where: str, kind: str, code: int) -> None:
        if code == 0:
            self.tally.missed += 1  # it ended before the kill
        elif code != -signal.SIGKILL:
            self._fault(where, f"exit {code} before the kill")
            return
        else:
            self.tally.kills[kind] += 1
        self._finish(where, 0 if code == 0 else self.trainer.run())

    def _finish(self, where: str, code: int) -> None:
        if code:
            self._fault(where, f"exit {code}: {self.trainer.printed.read_text()[-2000:]}")
        elif wrong := differences(self.expected, self.trainer.folder):
            self._fault(where, f"differs: {', '.join(wrong)}")

    def _fault(self, where: str, what: str) -> None:
        self.tally.faults.append(f"{self.trainer.agent}: {where}: {what}")
        print(self.tally.faults[-1], flush=True)


def elsewhere(trainers: Sequence[Trainer]) -> None:
    """A run of each trainer in a process with nothing in common with ours; its sets are in another order."""
    script = """
import importlib, json, sys
from agents.cli.command import run_command
for agent, argv in json.loads(sys.argv[1]):
    module = importlib.import_module(f"agents.{agent}")
    if code := run_command(module.Config, module.main, argv, agent):
        sys.exit(code)
"""
    runs = json.dumps([(trainer.agent, trainer.argv) for trainer in trainers])
    words = [sys.executable, "-c", script, runs]
    process = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(process.stdout + process.stderr)


def crash(run: Crash, every: int, first: int, only: str, moments: int) -> None:
    """The kills of one trainer: at every so manieth failpoint, counted from `first`."""
    run.uninterrupted()
    for point in [point for point in run.points if re.search(only, point)][first % every :: every]:
        run.at(point)
    killed, points = run.killed_in_the_middle()
    for point in [point for point in points if re.search(only, point)][first % every :: every]:
        run.at(point, resumed_from=killed)
    draw = random.Random(run.trainer.agent)
    for _ in range(moments):
        run.at_random(draw.uniform(0, run.seconds))
    run.trainer.clear()


def thinned(points: Sequence[str]) -> list[str]:
    """TensorBoard writes each point of a curve by itself: a few of these failpoints stand for all."""
    events = [point for point in points if "tensorboard/events" in point]
    left_out = set(events) - set(events[::EVENTS])
    return [point for point in points if point not in left_out]


def table(tallies: dict[str, Tally]) -> str:
    """The table of docs/RELIABILITY.md."""
    kinds = [*OPERATIONS, "in a resume", "at random"]
    others = {kind for tally in tallies.values() for kind in tally.kills} - set(kinds)
    kinds += sorted(others)
    lines = [
        f"| killed at | {' | '.join(tallies)} |",
        "|---|" + "---:|" * len(tallies),
    ]
    for kind in kinds:
        counts = [str(tally.kills[kind]) for tally in tallies.values()]
        lines.append(f"| {kind} | {' | '.join(counts)} |")
    for name, of in (
        ("all", lambda tally: sum(tally.kills.values())),
        ("ended first", lambda tally: tally.missed),
        ("not the same", lambda tally: len(tally.faults)),
    ):
        lines.append(f"| {name} | {' | '.join(str(of(tally)) for tally in tallies.values())} |")
    return "\n".join(lines)


def main() -> int:
    """Reads the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trainers", nargs="+", choices=TRAINERS, default=list(TRAINERS))
    parser.add_argument("--every", type=int, help="kill each at every so manieth failpoint; 1: at all")
    parser.add_argument("--only", default="", help="only failpoints whose name matches this")
    parser.add_argument("--random", type=int, help="kills at random moments, of each trainer")
    asked = parser.parse_args()
    for name in ("rejection_sft", "ppo", "dpo", "training.trl_online"):
        importlib.import_module(f"agents.{name}")
    runs: list[Crash] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        work = Path(folder).resolve()
        for made in ("pocket", "brief"):
            (work / made).mkdir()
        model = save_brief(save_pocket(work / "pocket"), work / "brief")
        trainers = [Trainer(agent, model, work) for agent in asked.trainers]
        elsewhere(trainers)
        for place, trainer in enumerate(trainers):
            started = time.monotonic()
            every, moments = PLAN[trainer.agent]
            every = every if asked.every is None else asked.every
            moments = moments if asked.random is None else asked.random
            runs.append(Crash(trainer))
            # Each trainer dies at other ones, since they do much the same.
            crash(runs[-1], every, 2 * place, asked.only, moments)
            done = f"{runs[-1].tally.kills.total()} kills, {len(runs[-1].tally.faults)} faults"
            print(f"{trainer.agent}: {done}, {time.monotonic() - started:.0f} s", flush=True)
    print(table({run.trainer.agent: run.tally for run in runs}))
    return int(any(run.tally.faults for run in runs))


if __name__ == "__main__":
    raise SystemExit(main())
