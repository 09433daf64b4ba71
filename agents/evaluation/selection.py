"""Selection and update of a run, apart: what it wrote, what it accepted of that, what its updates made of it.

It reads a run's logs after the fact and verifies a few commands of each cycle. Only tasks of a domain's
grammar have references. Nothing here is within reach of training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from agents.cli.display import interval, number, signed
from agents.cli.files import write_json
from agents.evaluation.metrics import correctness
from agents.evaluation.paired import SIGNIFICANT, by_task
from agents.studies.runs import SELECTION, RunRecord, read_lines, read_run, read_truth
from agents.studies.settings import FIX
from envs.streams import stream
from envs.types import InputError, Task
from envs.verify.truth import verify

CAP = 25  # commands verified of a cycle: as many of those written, and as many of those accepted
LEARNT = "before"  # the phase whose candidates are learnt from; those of `after` only measure
NEEDED = ("cycle", "phase", "task_id", "domain", "task", "tool", "command", "accepted")
Row = Mapping[str, Any]


@dataclass
class Share:
    """How many of the commands that could be verified are right."""

    right: int = 0
    verified: int = 0

    @property
    def value(self) -> float | None:
        """The share; None where nothing could be verified."""
        return self.right / self.verified if self.verified else None

    def plain(self) -> dict[str, Any]:
        """As plain values."""
        return {"value": self.value, "right": self.right, "verified": self.verified}


def measure_selection(folder: Path) -> dict[str, Any] | None:
    """Selection and update of a run as plain values; None before its first cycle has ended.

    They are also put into the run's folder, where `agents.compare` finds them.

    Returns:
        `cycles`: by cycle, what was right among the `written` and the `accepted`, and `held_out`, greedy
        accuracy after its update. `written` and `accepted` of all cycles, `p` of Fisher's exact test between
        them, `held_out`: end against start, paired by task. `line`: what that says; empty if nothing.

    Raises:
        InputError: a file of the run is damaged.
    """
    record = read_run(folder)
    if not record.cycles:
        return None
    greedy = {int(row["cycle"]): row["eval/greedy"] for row in record.metrics if "eval/greedy" in row}
    of_kind = {"written": Share(), "accepted": Share()}
    cycles = []
    for cycle, rows in sorted(_candidates(folder).items()):
        if cycle > record.cycles:  # of a cycle that has not ended
            continue
        found: dict[str, Any] = {"cycle": cycle, "held_out": greedy.get(cycle)}
        for kind, whole in of_kind.items():
            share = _right_among(rows, kind, cycle)
            whole.right += share.right
            whole.verified += share.verified
            found[kind] = share.plain()
        cycles.append(found)
    written, accepted = of_kind["written"], of_kind["accepted"]
    measured: dict[str, Any] = {
        "start": greedy.get(0),
        "cycles": cycles,
        "written": written.plain(),
        "accepted": accepted.plain(),
        "p": _fisher(written, accepted),
        "held_out": _held_out(record),
    }
    measured["line"] = in_words(measured)
    with contextlib.suppress(OSError):  # a run that may only be read
        write_json(folder / SELECTION, measured)
    return measured


def _candidates(folder: Path) -> dict[int, list[Row]]:
    """The candidates that a run learnt from, by cycle."""
    path = folder / "rollouts.jsonl"
    found: dict[int, list[Row]] = {}
    for line, row in read_lines(path):
        if any(key not in row for key in NEEDED):
            raise InputError(f"{path}:{line}: the line is damaged, a field is missing: {FIX}")
        if row["phase"] == LEARNT:
            found.setdefault(row["cycle"], []).append(row)
    return found


def _right_among(rows: Sequence[Row], kind: str, cycle: int) -> Share:
    """What is right among a few of the candidates; always the same ones."""
    if kind == "accepted":
        rows = [row for row in rows if row["accepted"]]
    drawn = stream("selection", cycle, kind).sample(rows, min(CAP, len(rows)))
    tasks = [Task(row["task_id"], row["domain"], row["task"], row["tool"]) for row in drawn]
    share = Share()
    for verdict in verify(tasks, [row["command"] for row in drawn]):
        right = correctness(verdict.status)
        if right is not None:
            share.right += int(right)
            share.verified += 1
    return share


def _fisher(first: Share, second: Share) -> float | None:
    """Fisher's exact test of whether two shares differ; None where one is not known."""
    if not first.verified or not second.verified:
        return None
    table = [[share.right, share.verified - share.right] for share in (first, second)]
    return float(stats.fisher_exact(table).pvalue)


def _held_out(record: RunRecord) -> dict[str, Any]:
    """Held-out accuracy at the end against the start, on the tasks that both have."""
    ends = []
    for when in ("start", "end"):
        ends.append({task.task_id: task.greedy for task in read_truth(record, when)})
    change = by_task(*ends)
    return {**asdict(change), "verdict": change.verdict}


def in_words(measured: Row) -> str:
    """One line where the selection is shown to work and held-out accuracy does not rise; empty otherwise."""
    written, accepted = measured["written"]["value"], measured["accepted"]["value"]
    change, p = measured["held_out"], measured["p"]
    if p is None or p >= SIGNIFICANT or accepted <= written or change["verdict"] == "better":
        return ""
    said = f"accepted commands are right more often than written ones ({number(accepted)}, {number(written)})"
    moved = f"{signed(change['value'])} {interval(change, True)}".strip()
    if change["verdict"] == "worse":
        return f"{said}, yet held-out accuracy fell ({moved}): the selection works, and the update loses it"
    return f"{said}, yet no rise of held-out accuracy is shown ({moved})"
