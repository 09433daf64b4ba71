"""Prints how a run's memory grows: `python tests/memory_growth.py [TRAINER] [CYCLES]`. A figure, not a gate.

The cycles are as short as they can be, so that what is kept of each shows.
"""

from __future__ import annotations

import importlib
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHORT = "--model embedded --domain network --force --no-gates --reward random --max-new-tokens 32 --tasks 4"
SHORT += " --eval-tasks 2 --eval-subset 1 --eval-samples 1 --threads 1"
SHOWN = (1, 10, 20, 50, 100, 150, 200, 500, 1000)


def resident() -> float:
    """MiB of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def main(agent: str = "rejection_sft", cycles: str = "200") -> int:
    """Runs the cycles -> the exit status of the command."""
    sys.path.insert(0, str(ROOT))
    from agents.cli.command import run_command
    from agents.training.run import Run

    trainer = importlib.import_module(f"agents.{agent}")
    commit = Run.commit

    def watched(run: Run, cycle: int, *arguments: Any) -> Path:
        folder = commit(run, cycle, *arguments)
        if cycle in SHOWN or cycle == int(cycles):
            print(f"after cycle {cycle:>4}: {resident():.1f} MiB", file=sys.stderr, flush=True)
        return folder

    Run.commit = watched  # type: ignore[method-assign,assignment]
    with tempfile.TemporaryDirectory() as output:
        argv = [*SHORT.split(), "--cycles", cycles, "--output", output]
        return run_command(trainer.Config, trainer.main, argv, agent)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
