"""Reads what a run wrote, finished or still running, and changes nothing in it: no lock, no write."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agents.evaluation.metrics import correctness, mean
from agents.policy.labels import all_labels
from agents.studies.settings import (
    FIX,
    SAME_EVALUATION,
    SAME_SCALE,
    difference_of,
    is_labelled,
    read_settings,
)
from agents.training import disk
from envs.jsonl import from_json, read_jsonl
from envs.messages import one_line
from envs.types import InputError

SELECTION = "selection.json"  # what `agents.evaluate RUN` leaves in the folder of a run
COUNTERS = ("preferences", "judge_calls", "tokens_written", "tokens_scored")
LEARNING = ("time/generate", "time/reward", "time/train")


@dataclass(frozen=True)
class RunRecord:
    """A run as its files tell it.

    Attributes:
        name: for tables and charts.
        settings: its config.yaml.
        metrics: one row per logged step: `step` is the number of candidates scored, the rest metrics.
        results: its progress.json; empty where it has none yet.
        seconds: wall-clock time of its cycles.
        learning: seconds of these for generating, scoring and training, without evaluation and alarms.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    metrics: Sequence[Mapping[str, float]]
    results: Mapping[str, Any]
    seconds: float
    learning: float

    @property
    def trainer(self) -> str:
        """The command that made it."""
        return str(self.settings["agent"])

    @property
    def labelled(self) -> bool:
        """Whether its reward uses labels, as the run recorded; before it has recorded that, by its reward."""
        return bool(self.results.get("labelled", is_labelled(str(self.settings.get("reward")))))

    @property
    def labels(self) -> int:
        """Labels that went into it, labelled preferences and those before the run included."""
        return all_labels(self.results)

    @property
    def usage(self) -> dict[str, int]:
        """What it consumed beside labels, as it was counted; other models by the sum of their sizes."""
        counted = dict(self.results.get("usage", {}))
        models: Mapping[str, int] = counted.pop("models", {})
        found = {name: int(counted.get(name, 0)) for name in COUNTERS}
        return {**found, "other_models": sum(models.values())}

    @property
    def cycles(self) -> int:
        """Cycles that are done."""
        return len(self.results.get("cycles", []))

    @property
    def finished(self) -> bool:
        """Whether its last cycle was evaluated on all held-out tasks."""
        last = self.results.get("stopped", self.settings.get("cycles", 0))
        return "end" in self.results.get("eval", {}) and self.cycles >= int(last)

    @property
    def candidates(self) -> int:
        """Candidates scored."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    def whole(self, when: str, metric: str) -> float | None:
        """A metric of the evaluation on all held-out tasks; `when` is `start` or `end`."""
        value = self.results.get("eval", {}).get(when, {}).get(f"eval/{metric}")
        return None if value is None else float(value)

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """(candidates scored, value) wherever the metric was logged."""
        return [(int(row["step"]), row[metric]) for row in self.metrics if metric in row]

    def first_and_last(self, metric: str) -> tuple[float | None, float | None]:
        """The metric after the first cycle in which it was logged, and now."""
        values = [row[metric] for row in self.metrics if metric in row and row.get("cycle", 1) > 0]
        if not values:
            return None, None
        return values[0], values[-1]

    @property
    def score_change(self) -> float | None:
        """How its own score changed, as the run reports it; before it does, by its curve."""
        if self.results.get("improvement") is not None:
            return float(self.results["improvement"])
        first, last = self.first_and_last("reward/mean")
        if first is None or last is None:
            return None
        return last - first

    @property
    def alarms(self) -> list[str]:
        """Names of the alarms that were raised in any cycle."""
        raised = set()
        for row in self.metrics:
            for name, value in row.items():
                if name.startswith("alarm/") and value:
                    raised.add(name.removeprefix("alarm/"))
        return sorted(raised)

    @property
    def diverged(self) -> int | None:
        """Candidates scored when its score was first seen to rise while held-out accuracy fell, or None."""
        steps = [int(row["step"]) for row in self.metrics if row.get("alarm/divergence")]
        return min(steps, default=None)


@dataclass(frozen=True)
class HeldOutTask:
    """One line of truth.jsonl.

    Attributes:
        intent: domain and intent, as `agents.evaluate` names them; the domain alone for a task of no intent.
        greedy: 1.0 for a right greedy command, 0.0 for another, None where it was not executed.
        pass_at_1: share of the executed samples that are right.
    """

    task_id: str
    domain: str
    intent: str
    text: str
    greedy: float | None
    pass_at_1: float | None


# ---- a run ----


def read_run(folder: Path, name: str = "") -> RunRecord:
    """Reads a run. A last line that is only half written is left out: the run is at work.

    Raises:
        InputError: there is no run, or one of its files is damaged; one line with the fix.
    """
    settings = read_settings(folder)
    _check_logs(folder)
    path = folder / "metrics.jsonl"
    metrics = []
    for number, row in read_lines(path):
        if "step" not in row or not all(map(_is_number, row.values())):
            raise _damaged(path, number, "it holds something other than numbers, or no step")
        metrics.append(row)
    times, learning = [], []
    for _, row in read_lines(folder / "timings.jsonl"):
        for key, value in row.items():
            if not key.startswith("time/") or not _is_number(value):
                continue
            times.append(value)
            if key in LEARNING:
                learning.append(value)
    progress = _progress(folder)
    if progress.get("cycles") and not metrics:
        raise InputError(f"{path}: is missing or empty, though cycles are done: {FIX}")
    return RunRecord(
        name or folder.absolute().name,
        folder,
        settings,
        metrics,
        progress,
        math.fsum(times),
        math.fsum(learning),
    )


def read_runs(folders: Sequence[str]) -> list[RunRecord]:
    """The runs, under names that tell them apart.

    Raises:
        InputError: one is not there, damaged, or has not finished a cycle.
    """
    records = []
    for folder in folders:
        record = read_run(Path(folder))
        if not record.cycles:
            raise InputError(f"{record.folder}: has not finished a cycle yet: wait for it, or leave it out")
        records.append(record)
    if len({record.name for record in records}) == len(records):
        return records
    above = os.path.commonpath([record.folder.resolve() for record in records])
    return [replace(record, name=str(record.folder.resolve().relative_to(above))) for record in records]


def check_comparable(records: Sequence[RunRecord], strict: bool) -> None:
    """Raises InputError, with the reason, where the runs' accuracies are not the same measure.

    Args:
        strict: their scores must be on the same scale as well.
    """
    first = records[0]
    tasks = _texts(first)
    for other in records[1:]:
        pair = f"{first.name} and {other.name} cannot be compared"
        both = [first.settings, other.settings]
        why = difference_of(both, SAME_EVALUATION)
        if why:
            what = "domains" if why.startswith("domain ") else "evaluations"
            raise InputError(f"{pair}: their {what} differ, {why}: leave one out")
        if _texts(other) != tasks:
            why = "as if a domain's file had changed between them"
            raise InputError(f"{pair}: their held-out tasks are not the same, {why}: leave one out")
        why = difference_of(both, SAME_SCALE)
        if strict and why:
            fix = "leave one out, or leave out --strict"
            raise InputError(f"{pair}: their rewards are on different scales, {why}: {fix}")


def _texts(record: RunRecord) -> dict[str, str]:
    return {task.task_id: task.text for task in read_truth(record, "start")}


def _check_logs(folder: Path) -> None:
    """Raises InputError where a log is not as the newest checkpoint has it; it may have grown since."""
    for checkpoint in sorted((folder / "checkpoints").glob("cycle-[0-9]*"), reverse=True):
        try:
            logs = from_json((checkpoint / "state.json").read_text(encoding="utf-8"))["logs"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # of an older version, or damaged, or being written: an older one tells as much
        for name, plain in logs.items():
            try:
                same = disk.sum_of(folder / name, plain["bytes"]).plain == plain
                problem = "" if same else "it does not match its sha256 sum"
            except (OSError, ValueError) as error:
                problem = one_line(error)
            if problem:
                raise InputError(f"{folder / name}: is damaged, {problem} in {checkpoint.name}: {FIX}")
        return


def _progress(folder: Path) -> Mapping[str, Any]:
    """The finished results, or the progress if it has more cycles: a finished run may be being extended."""
    best: Mapping[str, Any] = {}
    for path in (folder / "self_improvement_results.json", folder / "progress.json"):
        try:
            found = from_json(path.read_text(encoding="utf-8"))
            if not _has_cycles(found):
                raise ValueError("it holds no cycles")
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read ({one_line(error)}): {FIX}") from None
        if not best or len(found["cycles"]) > len(best["cycles"]):
            best = found
    return best


def _has_cycles(results: Any) -> bool:
    if not isinstance(results, dict):
        return False
    return isinstance(results.get("cycles"), list) and isinstance(results.get("eval", {}), dict)


def read_truth(record: RunRecord, when: str) -> list[HeldOutTask]:
    """The held-out tasks of the whole evaluation at the `start` or the `end`.

    While the run has no end, its last evaluation on the subset stands for it.

    Raises:
        InputError: truth.jsonl is damaged.
    """
    path = record.folder / "truth.jsonl"
    if when == "start":
        wanted = (0, "whole")
    elif record.finished:
        wanted = (int(record.results.get("kept", record.cycles)), "whole")
    else:
        wanted = (record.cycles, "subset")
    found: dict[str, HeldOutTask] = {}
    for number, row in read_lines(path):
        try:
            if (row["cycle"], row["part"]) == wanted:
                found[row["task_id"]] = _task(row)
        except (KeyError, TypeError):
            raise _damaged(path, number, "a field is missing") from None
    return list(found.values())


def _task(row: Mapping[str, Any]) -> HeldOutTask:
    domain = Path(row["domain"]).stem
    samples = []
    for sample in row["samples"]:
        value = correctness(sample["status"])
        if value is not None:
            samples.append(value)
    return HeldOutTask(
        task_id=row["task_id"],
        domain=row["domain"],
        intent=f"{domain}: {row['intent']}" if row["intent"] else domain,
        text=row["task"],
        greedy=correctness(row["greedy"]["status"]),
        pass_at_1=mean(samples),
    )


def read_selection(record: RunRecord) -> dict[str, float | None] | None:
    """The share that is right among the commands a run wrote, and among those it accepted.

    None where `agents.evaluate` has not measured them, or before the run's last cycle.
    """
    try:
        found = from_json((record.folder / SELECTION).read_text(encoding="utf-8"))
        if len(found["cycles"]) == record.cycles:
            return {kind: found[kind]["value"] for kind in ("written", "accepted")}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None


# ---- lines ----


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, record) of a log; nothing without the file. A half-written last line is left out."""
    try:
        yield from read_jsonl(path, fix=FIX, log=True)
    except FileNotFoundError:
        return


def _damaged(path: Path, number: int, why: str) -> InputError:
    return InputError(f"{path}:{number}: the line is damaged, {why}: {FIX}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
