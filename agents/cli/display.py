"""What a trainer shows while it runs: a live line on a terminal, plain lines elsewhere; and the table at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table


class Display:
    """Progress over the cycles of a run; use it as a context manager.

    Args:
        cycles: how many there are in all.
        done: how many were finished before (a resumed run).
    """

    def __init__(self, cycles: int, done: int = 0) -> None:
        self.console = Console(highlight=False)
        self.cycles, self._first, self._started = cycles, done, 0.0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[facts]}"),
        )
        self._progress = Progress(
            *columns, console=self.console, disable=not self.console.is_terminal, transient=True
        )
        self._task = self._progress.add_task("start", total=cycles, completed=done, facts="")

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def phase(self, cycle: int, name: str) -> None:
        """Says what is being done now. The clock of the time left starts with the first cycle."""
        if cycle > 0:
            self._started = self._started or time.monotonic()
        self._progress.update(self._task, description=f"cycle {cycle}/{self.cycles}  {name:8}")

    def finished(self, cycle: int, facts: Sequence[str]) -> None:
        """A cycle is finished: moves the bar, and prints a line that stays."""
        seconds = (time.monotonic() - self._started) / max(1, cycle - self._first) * (self.cycles - cycle)
        left = f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"
        self._progress.update(
            self._task, completed=cycle, facts="  ".join([*facts[:2], left])
        )  # score, acceptance
        self.line(f"cycle {cycle:>3}/{self.cycles}  " + "  ".join(facts) + f"  {left}")

    def line(self, text: str) -> None:
        """Prints one line."""
        self.console.print(text, markup=False, soft_wrap=True)


def show_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table, numbers to the right."""
    console = Console(highlight=False)
    console.width = max(
        console.width, 110
    )  # a file or a pipe has no width, and numbers that are broken cannot be read
    table = Table(title=title, title_justify="left")
    for name in header:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"
