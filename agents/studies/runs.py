"""Reads what a run wrote, finished or still running, and changes nothing in it: no lock, no write."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from envs.messages import one_line
from envs.types import InputError

# Two runs whose greedy truth is to be compared must have been measured on the same tasks, with commands of the same greatest length.
SAME_TASKS = ("domain", "eval_tasks", "max_new_tokens")
# What was sampled must in addition have been sampled alike, and the curves be of the same subset.
SAME_EVALUATION = (*SAME_TASKS, "eval_subset", "eval_samples", "temperature")
# Scores of two rewards, of two readers or of two embedders are on different scales.
SAME_SCALE = ("reward", "gates", "inverter", "inverse_temperature", "embedder")
LEARNING = ("time/generate", "time/reward", "time/train")


@dataclass(frozen=True)
class RunRecord:
    """A run as its files tell it.

    Attributes:
        name: for tables and charts.
        settings: its config.yaml.
        metrics: a row a logged step: `step` is the number of candidates scored, the rest metrics.
        results: its progress.json; empty where it has none yet.
        seconds: wall-clock time of its cycles.
        learning: of these the seconds of writing, scoring and training, without evaluation and the measures of health.
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
        return str(self.settings.get("agent", "unknown"))

    @property
    def labelled(self) -> bool:
        """Whether its reward uses labels, as it recorded that itself; of an older run as `is_labelled` says."""
        return bool(self.results.get("labelled", is_labelled(str(self.settings.get("reward")))))

    @property
    def cycles(self) -> int:
        """Cycles that are done."""
        return len(self.results.get("cycles", []))

    @property
    def finished(self) -> bool:
        """Whether its last cycle was evaluated on all held-out tasks."""
        return "end" in self.results.get("eval", {}) and self.cycles >= int(self.settings.get("cycles", 0))

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
        return (values[0], values[-1]) if values else (None, None)

    @property
    def score_change(self) -> float | None:
        """How its own score changed: first phase to last, as the run reports it, else by its curve."""
        if self.results.get("improvement") is not None:
            return float(self.results["improvement"])
        first, last = self.first_and_last("reward/mean")
        return None if first is None or last is None else last - first

    @property
    def alarms(self) -> list[str]:
        """Names of the alarms that held in any cycle."""
        return sorted(
            {
                name.removeprefix("alarm/")
                for row in self.metrics
                for name in row
                if name.startswith("alarm/") and row[name]
            }
        )


@dataclass(frozen=True)
class HeldOutTask:
    """One line of truth.jsonl: `greedy` is 1.0 or 0.0, None where it was not executed; `pass_at_1` the share of samples that are right."""

    task_id: str
    domain: str
    text: str
    greedy: float | None
    pass_at_1: float | None

    @property
    def intent(self) -> str:
        """Domain and intent, as `agents.evaluate` names them; the domain alone for a task of no intent."""
        parts = self.task_id.split("/")
        domain = Path(self.domain).stem
        return f"{domain}: {parts[1]}" if len(parts) == 3 else domain


def read_run(folder: Path, name: str = "") -> RunRecord:
    """Reads a run.

    Raises:
        InputError: no run is there, or one of its files is damaged; one line with the fix. A last line that is only half written is
            that of a run at work, and left out.
    """
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError("it holds no settings")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{folder}: no run is there (it has no config.yaml): give the folder of a run"
        ) from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"{folder / 'config.yaml'}: cannot be read ({one_line(error)}): restore it, or leave the run out"
        ) from None
    metrics = []
    for number, row in read_lines(folder / "metrics.jsonl"):
        metrics.append(row)
        if not isinstance(row.get("step"), (int, float)) or not all(
            _is_number(value) for value in row.values()
        ):
            raise _damaged(
                folder / "metrics.jsonl", number, "it holds something other than numbers, or no step"
            )
    timings = [row for _, row in read_lines(folder / "timings.jsonl")]
    times = [
        (key, value)
        for row in timings
        for key, value in row.items()
        if key.startswith("time/") and _is_number(value)
    ]
    learning = math.fsum(value for key, value in times if key in LEARNING)
    seconds = math.fsum(value for _, value in times)
    return RunRecord(
        name or folder.absolute().name, folder, settings, metrics, _progress(folder), seconds, learning
    )


def _progress(folder: Path) -> Mapping[str, Any]:
    """Of the finished results and the progress the one with more cycles: a finished run may be being extended."""
    best: Mapping[str, Any] = {}
    for path in (folder / "self_improvement_results.json", folder / "progress.json"):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if (
                not isinstance(found, dict)
                or not isinstance(found.get("cycles"), list)
                or not isinstance(found.get("eval", {}), dict)
            ):
                raise ValueError("it holds no cycles")
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: cannot be read ({one_line(error)}): restore it, or leave the run out"
            ) from None
        if not best or len(found["cycles"]) > len(best["cycles"]):
            best = found
    return best


def read_truth(record: RunRecord, when: str) -> list[HeldOutTask]:
    """The held-out tasks of the whole evaluation at the `start` or the `end`; while the run has no end, those of its last evaluation.

    Raises:
        InputError: truth.jsonl is damaged.
    """
    path = record.folder / "truth.jsonl"
    if when == "start":
        cycle, part = 0, "whole"
    elif record.finished:
        cycle, part = int(record.results.get("kept", record.cycles)), "whole"
    else:
        cycle, part = record.cycles, "subset"
    found: dict[str, HeldOutTask] = {}
    for number, row in read_lines(path, f'"part": "{part}"'):
        try:
            if row["cycle"] == cycle and row["part"] == part:
                samples = [value for value in map(_truth, row["samples"]) if value is not None]
                share = math.fsum(samples) / len(samples) if samples else None
                found[row["task_id"]] = HeldOutTask(
                    row["task_id"], row["domain"], row["task"], _truth(row["greedy"]), share
                )
        except (KeyError, TypeError, AttributeError):
            raise _damaged(path, number, "a field is missing") from None
    return list(found.values())


def is_labelled(reward: str) -> bool:
    """Whether a reward uses labels: an upper bound, and to be shown as such. Of a blend whose file is gone that is not known."""
    from rewards.registry import reward_info

    try:
        return reward_info(reward).labelled
    except InputError:
        return False


def difference_of(settings: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> str:
    """What differs between two or more runs' settings, as `key a and b`; empty where nothing does."""
    for key in keys:
        values = list(dict.fromkeys(str(row.get(key)) for row in settings))
        if len(values) > 1:
            return f"{key} {' and '.join(values)}"
    return ""


def read_lines(path: Path, holding: str = "") -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, record) of a log, of the lines that hold a text; none where there is no file."""
    try:
        with path.open(encoding="utf-8", errors="strict") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith("\n"):
                    return  # being written at this moment
                if holding not in line:
                    continue
                try:
                    row = json.loads(line)
                except ValueError:
                    raise _damaged(path, number, "it is not JSON") from None
                if not isinstance(row, dict):
                    raise _damaged(path, number, "it is no record")
                yield number, row
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read ({one_line(error)}): restore it, or leave the run out"
        ) from None


def _damaged(path: Path, number: int, why: str) -> InputError:
    return InputError(f"{path}:{number}: the line is damaged, {why}: restore the file, or leave the run out")


def _truth(judged: Mapping[str, Any]) -> float | None:
    return None if judged["status"] == "not_executed" else float(judged["status"] == "correct")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
