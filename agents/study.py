"""Many arms, several seeds, one table: which reward, selection rule or trainer works, and how well.

    python -m agents.study configs/studies/smoke.yaml             # two arms, a minute
    python -m agents.study configs/studies/embedded.yaml --jobs 2
    python -m agents.study configs/studies/embedded.yaml --jobs 0      # starts nothing: reports what is there

Every run is a child process of its trainer's own command, in OUTPUT/runs/ARM/sSEED. A study that is started
again goes on: finished runs stay as they are, interrupted ones continue from their last cycle, failed ones
are tried again. The exit status is 1 where something failed. Writes study.json, STUDY.md, index.html (one
page, everything inside) and charts. For the format of the file see configs/studies/smoke.yaml.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from agents import (
    constitutional,
    dpo,
    evaluate,
    grpo,
    ppo,
    rejection_sft,
    reward_model,
    rloo,
    self_rewarding,
    sft,
    spin,
    star,
)
from agents.cli.command import run_command
from agents.cli.display import as_json, say
from agents.cli.faults import Terminated
from agents.cli.files import check_output
from agents.cli.values import require_counts
from agents.training.config import TrainConfig
from envs.messages import visible
from envs.types import InputError

TRAINERS: dict[str, type[TrainConfig]] = {
    "rejection_sft": rejection_sft.Config,
    "ppo": ppo.Config,
    "dpo": dpo.Config,
    "constitutional": constitutional.Config,
    "grpo": grpo.Config,
    "rloo": rloo.Config,
    "reward_model": reward_model.Config,
    "sft": sft.Config,
    "self_rewarding": self_rewarding.Config,
    "spin": spin.Config,
    "star": star.Config,
}
COMMANDS: dict[str, type] = {**TRAINERS, "evaluate": evaluate.Config}


@dataclass(frozen=True)
class Config:
    """Runs the arms of a study over several seeds and compares them. An existing study is continued."""

    file: Positional[str]
    """YAML file of the study."""
    output: str | None = None
    """Folder of the study. Default: runs/study/<name of the file>."""
    jobs: int | None = None
    """Runs at a time. Default: one per core. 0 starts nothing and reports what is there."""
    json: bool = False
    """Print study.json and nothing else; progress goes to stderr."""

    def check(self) -> None:
        """Raises InputError for a negative --jobs."""
        if self.jobs is not None and self.jobs < 0:
            raise InputError(f"--jobs {self.jobs}: must be 1 or more, or 0 to report what is there")
        require_counts(self, "jobs", least=0, most=4096)
        check_output(self.output)


def main(config: Config) -> int:
    """Runs what is missing, then writes the report of all that is there."""
    from agents.studies.plan import read_plan  # slow to import, as those below, and not for --help

    plan = read_plan(Path(config.file), TRAINERS)

    from agents.studies.answer import answer
    from agents.studies.folder import Ledger, check_same, collect, held
    from agents.studies.jobs import run_jobs
    from agents.studies.markdown import failure
    from agents.studies.output import write_study
    from agents.studies.schedule import all_jobs, names_of
    from agents.studies.summary import summarize

    folder = Path(config.output or f"runs/study/{plan.name}")
    at_once = cores() if config.jobs is None else config.jobs
    out = sys.stderr if config.json else sys.stdout
    with held(folder):
        check_same(plan, folder)
        jobs = all_jobs(plan, folder, COMMANDS) if at_once else []
        ledger = Ledger(folder, at_once)
        if jobs:
            runs = sum(len(arm.seeds) for arm in plan.arms.values())
            print(visible(f"{plan.name}: {len(plan.arms)} arms, {runs} runs, {folder}"), file=out, flush=True)
            try:
                run_jobs(jobs, at_once, out, ledger.ended)
            except KeyboardInterrupt:
                return interrupted(config, 130)
            except Terminated:
                return interrupted(config, 143)
        names = names_of(plan)
        failed = {name: why for name, why in ledger.failed.items() if name in names}
        found = collect(plan, folder, failed)
        study = summarize(plan, found.runs, found.failed, found.transfer, found.theory)
        study["command"] = f"python -m agents.study {shlex.quote(config.file)}"
        study["wall_seconds"] = ledger.seconds
        study["at_once"] = ledger.at_once
        study["failed"] += failed_evaluations(failed)
        write_study(study, folder)
    if config.json:
        print(as_json(study, 1))
        return 1 if study["failed"] else 0
    for line in answer(study):
        say(line)
    for row in study["failed"]:
        say(f"FAILED {failure(row)}: {row['why']}")
    say(folder / "index.html")
    return 1 if study["failed"] else 0


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def interrupted(config: Config, code: int) -> int:
    """Says how to continue -> the exit code."""
    output = f" --output {shlex.quote(config.output)}" if config.output else ""
    again = f"python -m agents.study {shlex.quote(config.file)}{output}"
    print(visible(f"interrupted: go on with {again}"), file=sys.stderr)
    return code


def failed_evaluations(failed: Mapping[str, str]) -> list[dict[str, Any]]:
    """Evaluations among the jobs that failed; runs are in the summary already."""
    rows = []
    for name, why in failed.items():
        if name.startswith("evaluate "):
            rows.append({"arm": name, "seed": None, "why": why})
    return rows


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
