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

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
GRACE = 5.0  # seconds between asking a child to end and ending it


class Terminated(BaseException):
    """SIGTERM came. Like KeyboardInterrupt, it is no error."""


@dataclass
class Job:
    """One command. `weight`: how much of the whole it is, for the time left.

    Attributes:
        command: the words after the interpreter.
        log: where its output goes: LOG.out and LOG.err.
        share: how much of it is done, between 0 and 1.
        facts: what to say when it has succeeded.
        then: jobs that can start when it has succeeded.
    """

    name: str
    command: Sequence[str]
    log: Path
    weight: float = 1.0
    share: Callable[[], float] = lambda: 0.0
    facts: Callable[[], str] = lambda: ""
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
    ended: Callable[[str, str | None], None] = lambda name, why: None,
) -> None:
    """Runs all jobs; one that fails does not stop the others.

    Args:
        at_once: how many may run at a time.
        out: where progress is shown.
        ended: called with the name of each job that has ended, and with why it failed: the last line that it wrote to stderr; else None.

    Raises:
        KeyboardInterrupt, Terminated: after all children were ended.
    """
    waiting, running = list(jobs), list[_Child]()
    left = sum(map(_whole_weight, waiting))
    display, done, total = _Display(out, left), 0, sum(map(_whole_count, waiting))
    with display, _signals_noted() as noted:
        try:
            while waiting or running:
                while waiting and len(running) < at_once and not noted:
                    job = waiting.pop(0)
                    running.append(_Child(job, _start(job), time.monotonic()))
                time.sleep(0.1)
                if noted:
                    raise KeyboardInterrupt if noted[0] == signal.SIGINT else Terminated
                for child in [child for child in running if child.process.poll() is not None]:
                    running.remove(child)
                    _end([child])  # what it may have left behind
                    seconds = time.monotonic() - child.started
                    left -= child.job.weight
                    why = None if child.process.returncode == 0 else _last_line(child)
                    ended(child.job.name, why)
                    if why is None:
                        waiting[:0] = child.job.then
                        done += 1
                        text = f"{child.job.facts()} ({seconds:.0f} s)"
                    else:
                        left -= sum(map(_whole_weight, child.job.then))
                        done += _whole_count(child.job)
                        text = f"FAILED: {why}"
                    display.line(f"{done:>4}/{total}  {child.job.name}  {text}  {display.left(left)}")
                display.show([(child.job, child.job.share()) for child in running], left)
        finally:
            _end(running)


def _whole_weight(job: Job) -> float:
    return job.weight + sum(map(_whole_weight, job.then))


def _whole_count(job: Job) -> int:
    return 1 + sum(map(_whole_count, job.then))


def python_command(agent: str, *words: str) -> list[str]:
    """The words after the interpreter that run one of the project's commands."""
    return ["-m", f"agents.{agent}", *words]


def _start(job: Job) -> subprocess.Popen[bytes]:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "140"}
    parent = os.getpid()
    prctl = (
        ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    )  # found before the fork: only safe calls come after it

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
            start_new_session=True,  # Ctrl-C is for us, and a group can be ended as a whole
            preexec_fn=die_with_parent,
        )


def _end(children: Sequence[_Child]) -> None:
    """Ends the children with all that they started: asks, waits, and then does not ask."""
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


def _last_line(child: _Child) -> str:
    """Why a child failed, in one line."""
    try:
        lines = Path(f"{child.job.log}.err").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    code = child.process.returncode
    ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{last.removeprefix('error: ')[:500]} ({ended})"


@contextlib.contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM are noted, not raised: an exception in the middle of a fork would be lost, or leave a child unknown."""
    noted: list[int] = []
    before = {
        number: signal.signal(number, lambda given, _: noted.append(given))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Display:
    """A live line on a terminal, plain lines elsewhere. It has no thread of its own: a process that forks should have none."""

    def __init__(self, out: TextIO, all_weight: float) -> None:
        self.console = Console(file=out, highlight=False)
        columns = (
            TextColumn("{task.percentage:>3.0f} %"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[facts]}"),
        )
        shown = self.console.is_terminal
        self._progress = Progress(
            *columns, console=self.console, auto_refresh=False, disable=not shown, transient=True
        )
        self._all, self._began, self._shown = max(all_weight, 1e-9), time.monotonic(), 0.0
        self._task = self._progress.add_task("", total=self._all, facts="")

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def left(self, left: float) -> str:
        """Time left, at the speed since the start."""
        done = self._all - left
        if done <= 0 or left <= 0:
            return ""
        seconds = (time.monotonic() - self._began) / done * left
        return f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"

    def show(self, running: Sequence[tuple[Job, float]], left: float) -> None:
        """Moves the bar, at most twice a second."""
        if time.monotonic() - self._shown < 0.5:
            return
        self._shown = time.monotonic()
        left -= sum(job.weight * share for job, share in running)
        facts = "  ".join([self.left(left), *(f"{job.name} {share:.0%}" for job, share in running)])
        self._progress.update(self._task, completed=self._all - left, facts=facts, refresh=True)

    def line(self, text: str) -> None:
        """Prints one line that stays."""
        self.console.print(text.rstrip(), markup=False, soft_wrap=True)
