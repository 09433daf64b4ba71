"""Runs commands as child processes, a few at a time; they end with this process, however it ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from agents.cli.display import time_left
from agents.cli.faults import Terminated
from envs.messages import visible

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
GRACE = 5.0  # seconds between SIGTERM and SIGKILL


def _no_share() -> float:
    return 0.0


def _no_facts() -> str:
    return ""


@dataclass
class Job:
    """One command.

    Attributes:
        command: the words after the interpreter.
        log: where its output goes: LOG.out and LOG.err.
        weight: how much of the whole it is, for the time left.
        share: how much of it is done, between 0 and 1.
        facts: what to say when it has succeeded.
        then: jobs that can start when it has succeeded.
    """

    name: str
    command: Sequence[str]
    log: Path
    weight: float = 1.0
    share: Callable[[], float] = _no_share
    facts: Callable[[], str] = _no_facts
    then: list[Job] = field(default_factory=list)


@dataclass
class _Child:
    job: Job
    process: subprocess.Popen[bytes]
    started: float


def run_jobs(
    jobs: Sequence[Job],
    at_once: int,
    out: TextIO,
    ended: Callable[[str, str | None], None] | None = None,
) -> None:
    """Runs all jobs; one that fails does not stop the others.

    Args:
        at_once: how many may run at a time.
        out: where progress is shown.
        ended: called when a job has ended, with its name and why it failed: the last line that it wrote to
            stderr; None where it succeeded.

    Raises:
        KeyboardInterrupt, Terminated: after all children were ended.
    """
    waiting = list(jobs)
    running: list[_Child] = []
    progress = _Progress(out, waiting)
    with progress, _signals_noted() as noted:
        try:
            while waiting or running:
                while waiting and len(running) < at_once and not noted:
                    job = waiting.pop(0)
                    running.append(_Child(job, _start(job), time.monotonic()))
                time.sleep(0.1)
                if noted:
                    raise KeyboardInterrupt if noted[0] == signal.SIGINT else Terminated
                for child in list(running):
                    if child.process.poll() is None:
                        continue
                    running.remove(child)
                    _end([child])  # what it may have left behind
                    why = _why_failed(child)
                    if ended is not None:
                        ended(child.job.name, why)
                    if why is None:
                        waiting[:0] = child.job.then
                    progress.ended(child, why)
                progress.show(running)
        finally:
            _end(running)


def command_of(config_type: type, *words: str) -> list[str]:
    """The words after the interpreter that run the command of this configuration."""
    return ["-m", config_type.__module__, *words]


def _start(job: Job) -> subprocess.Popen[bytes]:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "140"}
    parent = os.getpid()
    prctl = None
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl  # looked up before the fork: after it only safe calls are allowed

    def die_with_parent() -> None:
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:  # it died before the call above
                os._exit(1)

    with Path(f"{job.log}.out").open("wb") as out, Path(f"{job.log}.err").open("wb") as error:
        return subprocess.Popen(
            [sys.executable, *job.command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=error,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches only us, and the group can be ended as a whole
            preexec_fn=die_with_parent,
        )


def _end(children: Sequence[_Child]) -> None:
    """Ends the children with all that they started: SIGTERM, then SIGKILL after a while."""
    for child in children:
        _signal(child, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(max(0.0, deadline - time.monotonic()))
        _signal(child, signal.SIGKILL)
        child.process.wait()


def _signal(child: _Child, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.process.pid, number)


def _why_failed(child: _Child) -> str | None:
    """Why a child that has ended failed, in one line; None where it succeeded."""
    code = child.process.returncode
    if code == 0:
        return None
    try:
        said = Path(f"{child.job.log}.err").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        said = ""
    last = said.splitlines()[-1].strip() if said else "it said nothing"
    ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{last.removeprefix('error: ')[:500]} ({ended})"


@contextlib.contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM are noted, not raised: an exception during a fork could lose a child."""
    noted: list[int] = []

    def note(number: int, _: Any) -> None:
        noted.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Progress:
    """A live line on a terminal, plain lines elsewhere. It has no thread: a process that forks should not."""

    def __init__(self, out: TextIO, jobs: Sequence[Job]) -> None:
        self._left, self._total, self._done = _weight(jobs), _count(jobs), 0
        self._all = max(self._left, 1e-9)
        self._began, self._shown = time.monotonic(), 0.0
        self.console = Console(file=out, highlight=False)
        self._progress = Progress(
            TextColumn("{task.percentage:>3.0f} %"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[facts]}"),
            console=self.console,
            auto_refresh=False,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("", total=self._all, facts="")

    def __enter__(self) -> _Progress:
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def ended(self, child: _Child, why: str | None) -> None:
        """Prints a line for a job that has ended; where it failed, the jobs after it are counted as done."""
        job = child.job
        self._left -= job.weight
        self._done += 1
        if why is None:
            text = f"{job.facts()} ({time.monotonic() - child.started:.0f} s)"
        else:
            self._left -= _weight(job.then)
            self._done += _count(job.then)
            text = f"FAILED: {why}"
        line = f"{self._done:>4}/{self._total}  {job.name}  {text}  {self._time_left(self._left)}"
        self.console.print(visible(line.rstrip()), markup=False, soft_wrap=True)

    def show(self, running: Sequence[_Child]) -> None:
        """Moves the bar, at most twice a second."""
        if time.monotonic() - self._shown < 0.5:
            return
        self._shown = time.monotonic()
        left, facts = self._left, []
        for child in running:
            share = child.job.share()
            left -= child.job.weight * share
            facts.append(f"{child.job.name} {share:.0%}")
        text = "  ".join([self._time_left(left), *facts])
        self._progress.update(self._task, completed=self._all - left, facts=text, refresh=True)

    def _time_left(self, left: float) -> str:
        """Time left, at the speed since the start; empty where that is not known yet."""
        done = self._all - left
        if done <= 0 or left <= 0:
            return ""
        return time_left((time.monotonic() - self._began) / done * left)


def _weight(jobs: Sequence[Job]) -> float:
    """Of these jobs and all that follow them."""
    return sum(job.weight + _weight(job.then) for job in jobs)


def _count(jobs: Sequence[Job]) -> int:
    """These jobs and all that follow them."""
    return sum(1 + _count(job.then) for job in jobs)
