"""Attacks the sandbox that commands are executed in, and says of each attack whether it was contained.

    python -m agents.selftest
    python -m agents.selftest --json

The exit status is 0 where all were contained, 1 where not, and 2 where none could be run. It needs
bubblewrap and perl and takes about a minute. What the sandbox holds and what it does not is in
docs/SANDBOX.md.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass

from agents.cli.command import run_command
from envs.types import InputError
from envs.verify.attacks.judge import Outcome, run_all
from envs.verify.sandbox.probe import unavailable


@dataclass(frozen=True)
class Config:
    """Attacks the sandbox that commands are executed in. Exit status 0 means that every attack was
    contained."""

    json: bool = False
    """Print only JSON: a list of objects with name, contained and detail."""


def main(config: Config) -> int:
    """Runs all attacks and prints an outcome a line, or all of them as JSON."""
    missing = unavailable()
    if not missing and not shutil.which("perl", path="/usr/bin"):
        missing = "perl is not installed, and some attacks are written in it: apt-get install perl-base"
    if missing:
        raise InputError(missing)

    rows, contained = [], 0
    for outcome in run_all():
        rows.append(asdict(outcome))
        contained += outcome.contained
        if not config.json:
            print(_line(outcome), flush=True)
    if config.json:
        print(json.dumps(rows, indent=1))
    else:
        user = "root" if os.geteuid() == 0 else "an ordinary user"
        print(f"{contained} of {len(rows)} attacks contained, as {user}")
    return int(contained < len(rows))


def _line(outcome: Outcome) -> str:
    verdict = "contained" if outcome.contained else "NOT CONTAINED"
    return f"{verdict:<14} {outcome.name:<48} {outcome.detail}"


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main, sys.argv[1:]))
