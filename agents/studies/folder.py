"""The folder of a study: where its runs and evaluations are, what failed, and what there is to report."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.cli.files import write_whole, writing
from agents.cli.lock import HeldError, Lock
from agents.studies.plan import SET_BY_STUDY, Arm, Plan
from agents.studies.runs import RunRecord, read_run
from agents.studies.settings import read_settings
from envs.jsonl import from_json
from envs.types import InputError

# ---- places ----


def run_folder(folder: Path, arm: str, seed: int) -> Path:
    """Where a run of the study is."""
    return folder / "runs" / arm / f"s{seed}"


def settings_file(folder: Path, arm: str) -> Path:
    """The settings that an arm's runs are started with."""
    return folder / "runs" / arm / "settings.yaml"


def transfer_folder(folder: Path, arm: str, seed: int) -> Path:
    """Where a run's evaluation on other domains is."""
    return folder / "transfer" / arm / f"s{seed}"


def theory_folder(folder: Path, arm: str) -> Path:
    """Where the evaluation of an arm's model before training is."""
    return folder / "theory" / arm


# ---- how far it is ----


def cycles_done(run: Path) -> int:
    """The newest checkpoint's cycle."""
    newest = 0
    for path in (run / "checkpoints").glob("cycle-*"):
        number = path.name.removeprefix("cycle-")
        if number.isdigit():
            newest = max(newest, int(number))
    return newest


def is_finished(run: Path, cycles: int) -> bool:
    """Whether a run has written the results of all of its cycles."""
    try:
        results = from_json((run / "self_improvement_results.json").read_text(encoding="utf-8"))
        return len(results["cycles"]) >= int(results.get("stopped", cycles))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def has_report(folder: Path) -> bool:
    """Whether an evaluation has written its report. The page is written last."""
    return (folder / "report.html").is_file() and (folder / "report.json").is_file()


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """The study's folder, made if need be, for one process at a time.

    The lock ends with the process.

    Raises:
        InputError: the folder cannot be made, or another study uses it.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = Lock(folder)  # without locks on the file system, each run has its own
        except HeldError as holder:
            message = f"{folder} is in use by {holder}: wait for it, or choose another --output"
            raise InputError(message) from None
    try:
        yield
    finally:
        lock.release()


class Ledger:
    """What a study remembers apart from its runs: what failed last time, and how long it took so far.

    Attributes:
        failed: name of a job -> why.
        seconds: wall-clock time of all its sittings, each up to the last job that ended.
        at_once: jobs at a time in the last sitting that had any.
    """

    def __init__(self, folder: Path, at_once: int) -> None:
        self._path, self._now, self._clock = folder / "ledger.json", at_once, time.monotonic()
        self.failed: dict[str, str] = {}
        self.seconds, self.at_once = 0.0, at_once
        try:
            kept = from_json(self._path.read_text(encoding="utf-8"))
            self.failed = dict(kept["failed"])
            self.seconds, self.at_once = float(kept["seconds"]), int(kept["at_once"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError):
            fix = "remove it; only what failed and the time taken are forgotten"
            raise InputError(f"{self._path}: cannot be read: {fix}") from None

    def ended(self, name: str, why: str | None) -> None:
        """Notes the end of a job; `why` it failed, or None."""
        if why is None:
            self.failed.pop(name, None)
        else:
            self.failed[name] = why
        now = time.monotonic()
        self.seconds += now - self._clock
        self._clock, self.at_once = now, self._now
        kept = {"failed": self.failed, "seconds": self.seconds, "at_once": self.at_once}
        write_whole(self._path, json.dumps(kept))


def check_same(plan: Plan, folder: Path) -> None:
    """Raises InputError where an arm's runs were started with other settings than it has now.

    A larger number of cycles is allowed: the runs are extended.
    """
    for name, arm in plan.arms.items():
        for seed in arm.seeds:
            run = run_folder(folder, name, seed)
            if (run / "config.yaml").exists():
                _check_run(arm, run, read_settings(run, f"remove {run}, and the study makes it again"))


def _check_run(arm: Arm, run: Path, settings: Mapping[str, Any]) -> None:
    fix = f"choose another --output, or remove {run.parent}"
    if settings["agent"] != arm.trainer:
        raise InputError(f"{arm.name}: {run} is one of {settings['agent']}, not {arm.trainer}: {fix}")
    for key, now in arm.resolved.items():
        if key in SET_BY_STUDY or key not in settings:
            continue
        # None leaves the choice to the trainer; only of `adapter` it says what the run began with.
        if now is None and key != "adapter":
            continue
        then = settings[key]
        is_extended = key == "cycles" and isinstance(then, int) and then <= now
        if _plain(then) != _plain(now) and not is_extended:
            raise InputError(f"{arm.name}: {key} was {then} when {run} was started and is {now} now: {fix}")


def _plain(value: Any) -> Any:
    """A setting as it can be compared: a run keeps whole paths, and lists in place of tuples."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, str) and "/" in value:
        return str(Path(value).resolve())
    return value


# ---- what there is to report ----


@dataclass
class Found:
    """All that is in the folder.

    Attributes:
        runs: arm -> seed -> finished run.
        failed: arm -> seed -> why it failed.
        transfer: arm -> seed -> report on other domains.
        theory: arm -> report on its model before training.
    """

    runs: dict[str, dict[int, RunRecord]] = field(default_factory=dict)
    failed: dict[str, dict[int, str]] = field(default_factory=dict)
    transfer: dict[str, dict[int, Any]] = field(default_factory=dict)
    theory: dict[str, Any] = field(default_factory=dict)


def collect(plan: Plan, folder: Path, failed: Mapping[str, str]) -> Found:
    """Reads the runs and reports of a study; a damaged run counts as failed.

    Args:
        failed: name of a job -> why it failed.
    """
    found = Found()
    for name, arm in plan.arms.items():
        for seed in arm.seeds:
            run = run_folder(folder, name, seed)
            if is_finished(run, int(arm.resolved["cycles"])):
                try:
                    found.runs.setdefault(name, {})[seed] = read_run(run, name)
                except InputError as error:
                    found.failed.setdefault(name, {})[seed] = str(error)
            why = failed.get(f"{name} s{seed}")
            if why:
                found.failed.setdefault(name, {})[seed] = why
            report = transfer_folder(folder, name, seed)
            if arm.evaluate_on and has_report(report):
                found.transfer.setdefault(name, {})[seed] = _read_report(report)
    for name in plan.theory:
        report = theory_folder(folder, name)
        if has_report(report):
            found.theory[name] = _read_report(report)
    return found


def _read_report(folder: Path) -> Any:
    return from_json((folder / "report.json").read_text(encoding="utf-8"))
