"""Runs of any trainers side by side: curves, held-out accuracy task by task, one TensorBoard folder.

    python -m agents.compare runs/rejection_sft/A runs/ppo/B
    python -m agents.compare runs/rejection_sft/*-s0-* --output runs/compare/rewards --json

A run may still be at work: it is only read. Writes index.html (one page, everything inside), compare.json,
curves.png, and tensorboard/, in which the runs' curves lie over each other.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from agents.cli.command import run_command
from agents.cli.display import as_json, say
from agents.cli.files import check_folders, check_output, file_name, writing


@dataclass(frozen=True)
class Config:
    """Compares runs, finished or not: curves, held-out accuracy task by task, one TensorBoard folder.

    Refused, with the reason: runs on different domains or with different evaluations (tasks, samples,
    temperature, longest command). Scores of different rewards are on different scales: they are drawn apart,
    or refused with --strict. The accuracy of such runs can be compared.
    """

    runs: Positional[tuple[str, ...]] = ()
    """Folders of runs; the others are compared with the first."""
    output: str | None = None
    """Folder of the comparison. Default: runs/compare/<names of the runs>."""
    strict: bool = False
    """Refuse runs of different rewards too, instead of drawing their scores apart."""
    json: bool = False
    """Print compare.json and nothing else."""

    def check(self) -> None:
        """Raises InputError where no run is given, or one twice."""
        check_folders(self.runs, "python -m agents.compare runs/rejection_sft/A runs/ppo/B")
        check_output(self.output)


def main(config: Config) -> int:
    """Reads the runs, refuses those that cannot be compared, writes the comparison and prints a summary."""
    from agents.studies.runs import (  # slow to import, as those below, and not for --help
        check_comparable,
        read_runs,
    )

    records = read_runs(config.runs)
    check_comparable(records, config.strict)

    from agents.studies.comparison import make_report, show, write_comparison

    report = make_report(records)
    output = Path(config.output or f"runs/compare/{file_name(record.name for record in records)}")
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        write_comparison(report, records, output)
    if config.json:
        print(as_json(report, 1))
        return 0
    show(report)
    say(f"{output}/index.html; curves: tensorboard --logdir {shlex.quote(str(output / 'tensorboard'))}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
