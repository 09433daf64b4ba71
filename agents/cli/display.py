"""What commands show: a live line on a terminal, plain lines elsewhere, tables, and numbers as text."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from envs.messages import visible


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
        left = time_left(seconds)
        self._progress.update(
            self._task, completed=cycle, facts="  ".join([*facts[:2], left])
        )  # score, acceptance
        self.line(f"cycle {cycle:>3}/{self.cycles}  " + "  ".join(facts) + f"  {left}")

    def line(self, text: str) -> None:
        """Prints one line."""
        self.console.print(_visible_lines(text), markup=False, soft_wrap=True)


def say(text: object) -> None:
    """Prints a text for a person. What a model or a file has in it cannot steer the terminal."""
    print(_visible_lines(str(text)), flush=True)


def _visible_lines(text: str) -> str:
    return "\n".join(map(visible, text.split("\n")))


def as_json(value: Any, indent: int | None = None) -> str:
    """Plain values as JSON for standard output; in ASCII where a terminal could take a part for its own."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text if text.replace("\n", "").isprintable() else json.dumps(value, indent=indent)


def show_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], sentences: Sequence[str] = ()
) -> None:
    """Prints a table, numbers to the right; the columns in `sentences` hold text and start at the left."""
    console = Console(highlight=False)
    console.width = max(
        console.width, 110
    )  # a file or a pipe has no width, and numbers that are broken cannot be read
    table = Table(title=Text(visible(title)), title_justify="left")  # a str would be read as markup
    for name in header:
        shown = Text(visible(name))
        table.add_column(shown, justify="left" if name in sentences else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    console.print(table)


# ---- numbers, in tables and on pages ----


def number(value: float | None, digits: int = 3) -> str:
    """A number; a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    """A difference with its sign; without one where it rounds to 0, and a dash for None."""
    if value is None:
        return "–"
    shown = f"{value:+.3f}"
    return shown[1:] if float(shown) == 0 else shown


def interval(row: Mapping[str, Any], sign: bool = False) -> str:
    """`[low, high]` of an estimate, signed for a difference; empty where it has no interval."""
    if row.get("low") is None:
        return ""
    show = signed if sign else number
    return f"[{show(row['low'])}, {show(row['high'])}]"


def p_value(p: float | None) -> str:
    """A p-value in the usual form; a dash for None."""
    if p is None:
        return "–"
    if p < 0.0001:
        return "p < 0.0001"
    return f"p = {p:.4f}" if p < 0.01 else f"p = {p:.2f}"


def time_left(seconds: float) -> str:
    """How long it will still take."""
    return f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"
