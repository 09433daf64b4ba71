"""Many arms, several seeds, one table: which reward, which selection, which trainer works, and against what.

    python -m agents.study configs/studies/smoke.yaml             # two arms, a minute
    python -m agents.study configs/studies/embedded.yaml --jobs 2
    python -m agents.study configs/studies/embedded.yaml --jobs 0      # nothing is started: the report of what is there

Every run is a child process of its trainer's own command, in OUTPUT/runs/ARM/sSEED. A study that is started again goes on: finished
runs stay as they are, interrupted ones continue from their last cycle, failed ones are tried again. The exit status is 1 where
something failed. Writes study.json, STUDY.md, index.html (one page, everything inside) and charts. How a study's file looks:
configs/studies/smoke.yaml.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from tyro.conf import Positional

from agents.cli.command import run_command
from envs.types import InputError

if TYPE_CHECKING:
    from agents.studies.jobs import Job
    from agents.studies.plan import Arm, Plan

OUTPUT = "runs/study"
EVALUATION = 0.15  # weight of a command that evaluates, in parts of a run of the documented budget
BUDGET = 10 * 50 * 3


@dataclass(frozen=True)
class Config:
    """Runs the arms of a study over several seeds and reports how they compare. A study that is there already goes on."""

    file: Positional[str]
    """YAML file of the study."""
    output: str | None = None
    """Folder of the study. By default runs/study/<name of the file>."""
    jobs: int | None = None
    """Runs at a time, by default one a core; with 0 none is started and what is there is reported."""
    json: bool = False
    """Print study.json and nothing else; progress goes to stderr."""

    def check(self) -> None:
        """Raises InputError for a number of jobs that cannot be."""
        if self.jobs is not None and self.jobs < 0:
            raise InputError(f"--jobs {self.jobs}: must be 1 or more, or 0 to report what is there")


def main(config: Config) -> int:
    """Runs what is missing, then writes the report of all that is there."""
    from agents.studies.jobs import Terminated, run_jobs
    from agents.studies.plan import read_plan
    from agents.studies.report import answer, write_study
    from agents.studies.summary import summarize

    plan = read_plan(Path(config.file))
    folder = Path(OUTPUT) / plan.name if config.output in (None, OUTPUT) else Path(str(config.output))
    at_once = cores() if config.jobs is None else config.jobs
    out = sys.stderr if config.json else sys.stdout
    with _held(folder):
        check_same(plan, folder)
        jobs = [job for name in order(plan) for job in jobs_of(plan, *name, folder)] if at_once else []
        jobs += theory_jobs(plan, folder) if at_once else []
        ledger = Ledger(folder, at_once)
        if jobs:
            print(
                f"{plan.name}: {len(plan.arms)} arms, {sum(len(arm.seeds) for arm in plan.arms.values())} runs, {folder}",
                file=out,
                flush=True,
            )
            try:
                run_jobs(jobs, at_once, out, ledger.ended)
            except (KeyboardInterrupt, Terminated) as stop:
                given = f" --output {config.output}" if config.output not in (None, OUTPUT) else ""
                print(f"interrupted: go on with python -m agents.study {config.file}{given}", file=sys.stderr)
                return 130 if isinstance(stop, KeyboardInterrupt) else 143
        names = names_of(plan)
        failed = {name: why for name, why in ledger.failed.items() if name in names}
        study = summarize(plan, *found(plan, folder, failed)) | {
            "command": f"python -m agents.study {config.file}"
        }
        study |= {"wall_seconds": ledger.seconds, "at_once": ledger.at_once}
        study["failed"] += [
            {"arm": name, "seed": None, "why": why}
            for name, why in failed.items()
            if name.startswith("evaluate ")
        ]
        write_study(study, folder)
    if config.json:
        print(json.dumps(study, indent=1, ensure_ascii=False))
        return 1 if study["failed"] else 0
    for line in answer(study):
        print(line)
    for row in study["failed"]:
        print(
            f"FAILED {row['arm']}"
            + ("" if row["seed"] is None else f", seed {row['seed']}")
            + f": {row['why']}"
        )
    print(folder / "index.html")
    return 1 if study["failed"] else 0


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Ledger:
    """What a study remembers besides its runs, written at the end of each job: what failed last time, and the time that it has taken.

    Attributes:
        failed: name of a job -> why.
        seconds: wall-clock time of all its sittings, each up to the last job that ended.
        at_once: jobs at a time in the last sitting that had any.
    """

    def __init__(self, folder: Path, at_once: int) -> None:
        self._path, self._now, self._clock = folder / "ledger.json", at_once, time.monotonic()
        try:
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            self.failed, self.seconds, self.at_once = (
                dict(kept["failed"]),
                float(kept["seconds"]),
                int(kept["at_once"]),
            )
        except FileNotFoundError:
            self.failed, self.seconds, self.at_once = dict[str, str](), 0.0, at_once
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(
                f"{self._path}: cannot be read: remove it; only what failed and the time taken are forgotten"
            ) from None

    def ended(self, name: str, why: str | None) -> None:
        """Notes the end of a job; `why` it failed, or None."""
        if why is None:
            self.failed.pop(name, None)
        else:
            self.failed[name] = why
        now = time.monotonic()
        self.seconds, self._clock, self.at_once = self.seconds + now - self._clock, now, self._now
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(
            json.dumps({"failed": self.failed, "seconds": self.seconds, "at_once": self.at_once}),
            encoding="utf-8",
        )
        temporary.replace(self._path)


def order(plan: Plan) -> list[tuple[Arm, int]]:
    """All runs: the first seed of every arm, then the second of every arm, so that a study that is stopped has something of each."""
    longest = max(len(arm.seeds) for arm in plan.arms.values())
    return [
        (arm, arm.seeds[place])
        for place in range(longest)
        for arm in plan.arms.values()
        if place < len(arm.seeds)
    ]


def names_of(plan: Plan) -> set[str]:
    """The names of all jobs that a study may have."""
    runs = {f"{arm.name} s{seed}" for arm, seed in order(plan)}
    return (
        runs
        | {f"evaluate {name}" for name in runs}
        | {f"evaluate {name} before training" for name in plan.theory}
    )


def run_folder(folder: Path, arm: str, seed: int) -> Path:
    """Where a run of the study is."""
    return folder / "runs" / arm / f"s{seed}"


def settings_file(folder: Path, arm: str) -> Path:
    """The settings that an arm's runs are started with."""
    return folder / "runs" / arm / "settings.yaml"


def cycles_done(run: Path) -> int:
    """The newest checkpoint's cycle."""
    names = [path.name[6:] for path in (run / "checkpoints").glob("cycle-*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def is_finished(run: Path, cycles: int) -> bool:
    """Whether a run has done all of its cycles and said so."""
    try:
        return (
            len(json.loads((run / "self_improvement_results.json").read_text(encoding="utf-8"))["cycles"])
            >= cycles
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def jobs_of(plan: Plan, arm: Arm, seed: int, folder: Path) -> list[Job]:
    """What is still to do for one run: the training, and after it the evaluation on other domains."""
    from agents.studies.jobs import Job, python_command
    from agents.studies.plan import as_yaml

    run, cycles = run_folder(folder, arm.name, seed), int(arm.resolved["cycles"])
    log = folder / "logs" / f"{arm.name}-s{seed}"
    report = folder / "transfer" / arm.name / f"s{seed}"
    if not is_finished(
        run, cycles
    ):  # what an evaluation said of it before it was given more cycles holds no longer
        (report / "report.html").unlink(missing_ok=True)
    evaluations = []
    if arm.evaluate_on and not _is_report(report):
        words = [
            str(run),
            "--domain",
            ",".join(arm.evaluate_on),
            "--tasks",
            str(plan.transfer_tasks),
            "--samples",
            "1",
        ]
        # Only the truth of these is used: the reward that costs nothing is asked for.
        words += ["--reward", "random", "--output", str(report), "--json"]
        name = f"evaluate {arm.name} s{seed}"
        evaluations = [
            Job(
                name,
                python_command("evaluate", *words),
                Path(f"{log}-transfer"),
                EVALUATION * len(arm.evaluate_on),
            )
        ]
    if is_finished(run, cycles):
        return evaluations
    if (run / "config.yaml").is_file():
        words = ["--resume", str(run), "--cycles", str(cycles)]
    else:
        settings = settings_file(folder, arm.name)
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(as_yaml(arm.settings), encoding="utf-8")
        words = [
            "--config",
            str(settings),
            "--seed",
            str(seed),
            "--output",
            str(run.parent),
            "--name",
            run.name,
        ]
    weight = cycles * arm.resolved["tasks"] * arm.resolved["candidates"] / BUDGET

    def facts() -> str:
        from agents.studies.runs import read_run

        record = read_run(run)
        values = [record.whole(when, "greedy") for when in ("start", "end")]
        return "greedy truth " + " -> ".join("-" if value is None else f"{value:.3f}" for value in values)

    return [
        Job(
            f"{arm.name} s{seed}",
            python_command(arm.trainer, *words),
            log,
            weight * (1 - cycles_done(run) / cycles),
            share=lambda: cycles_done(run) / cycles,
            facts=facts,
            then=evaluations,
        )
    ]


def theory_jobs(plan: Plan, folder: Path) -> list[Job]:
    """The evaluation, in both directions, of the models that arms start from."""
    from agents.studies.jobs import Job, python_command

    jobs = []
    for name in plan.theory:
        report, arm = folder / "theory" / name, plan.arms[name]
        if _is_report(report):
            continue
        words = [
            "--model",
            str(arm.resolved["model"]),
            "--domain",
            str(arm.resolved["domain"]),
            "--reward",
            str(arm.resolved["reward"]),
        ]
        words += ["--adapter", str(arm.resolved["adapter"])] if arm.resolved["adapter"] else []
        for key in ("inverter", "inverse_temperature", "embedder", "temperature", "max_new_tokens"):
            words += (
                [f"--{key.replace('_', '-')}", str(arm.resolved[key])]
                if arm.resolved[key] is not None
                else []
            )
        words += ["--gates" if arm.resolved["gates"] else "--no-gates", "--output", str(report), "--json"]
        jobs.append(
            Job(
                f"evaluate {name} before training",
                python_command("evaluate", *words),
                folder / "logs" / f"{name}-theory",
                3 * EVALUATION,
            )
        )
    return jobs


def check_same(plan: Plan, folder: Path) -> None:
    """Raises InputError where an arm's runs were started with other settings than it has now; more cycles are no hindrance."""
    from agents.studies.plan import SET_BY_STUDY

    for name, arm in plan.arms.items():
        for seed in arm.seeds:
            run = run_folder(folder, name, seed)
            try:
                settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
            except FileNotFoundError:
                continue
            except (OSError, ValueError, yaml.YAMLError):
                raise InputError(
                    f"{run / 'config.yaml'}: cannot be read: remove {run}, and its run is made again"
                ) from None
            if not isinstance(settings, dict):
                raise InputError(
                    f"{run / 'config.yaml'}: holds no settings: remove {run}, and its run is made again"
                )
            trainer = settings.get("agent")
            if trainer != arm.trainer:
                raise InputError(
                    f"{name}: {run} is one of {trainer}, not {arm.trainer}: choose another --output, or remove {run.parent}"
                )
            for key, now in arm.resolved.items():
                # A default of None stands for what the trainer makes of it: of these only `adapter` says what the run began with.
                if key in SET_BY_STUDY or key not in settings or (now is None and key != "adapter"):
                    continue
                then = settings[key]
                if _plain(then) != _plain(now) and not (
                    key == "cycles" and isinstance(then, int) and then <= now
                ):
                    raise InputError(
                        f"{name}: {key} was {then} when {run} was started and is {now} now: choose another --output, or remove {run.parent}"
                    )


def _plain(value: Any) -> Any:
    """A setting as it can be compared: a run keeps whole paths and lists."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(Path(value).resolve()) if isinstance(value, str) and "/" in value else value


def found(plan: Plan, folder: Path, failed: dict[str, str]) -> tuple[Any, Any, Any, Any]:
    """All that is in the folder -> (finished runs, why runs failed, transfer, theory), each by arm and the first three by seed."""
    from agents.studies.runs import read_run

    runs: dict[str, dict[int, Any]] = {}
    reasons: dict[str, dict[int, str]] = {}
    transfer: dict[str, dict[int, Any]] = {}
    for name, arm in plan.arms.items():
        for seed in arm.seeds:
            run = run_folder(folder, name, seed)
            if is_finished(run, int(arm.resolved["cycles"])):
                try:
                    runs.setdefault(name, {})[seed] = read_run(run, name)
                except InputError as error:
                    reasons.setdefault(name, {})[seed] = str(error)
            if why := failed.get(f"{name} s{seed}"):
                reasons.setdefault(name, {})[seed] = why
            report = folder / "transfer" / name / f"s{seed}"
            if arm.evaluate_on and _is_report(report):
                transfer.setdefault(name, {})[seed] = json.loads(
                    (report / "report.json").read_text(encoding="utf-8")
                )
    reports = {name: folder / "theory" / name for name in plan.theory}
    theory = {
        name: json.loads((path / "report.json").read_text(encoding="utf-8"))
        for name, path in reports.items()
        if _is_report(path)
    }
    return runs, reasons, transfer, theory


def _is_report(folder: Path) -> bool:
    """Whether an evaluation has written its report. The page is written last."""
    return (folder / "report.html").is_file() and (folder / "report.json").is_file()


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The study's folder, made if need be, for one process at a time. The lock leaves no file behind and ends with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(
            f"--output {folder}: cannot be written ({error.strerror}): choose another folder"
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{folder} is in use by another study: wait for it, or choose another --output"
            ) from None
        except OSError:
            pass  # a file system without locks: each run has its own
        yield
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
