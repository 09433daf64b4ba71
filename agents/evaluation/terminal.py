"""The report of an evaluation on a terminal: metrics of every subject, and the comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from agents.cli.display import interval, number, say, show_table, signed

Row = Mapping[str, Any]
CYCLES = 12  # rows of a run, evenly spread over its cycles
METRICS = (
    "greedy",
    "pass@1",
    "pass@K",
    "inverse",
    "invalid",
    "not_executed",
    "reward",
    "auc",
    "auc_within",
    "best_of_k",
    "risk_area",
)


def show(report: Row) -> None:
    """Prints the report."""
    k = report["k"]
    if report["references"]:
        _show_references(report["references"], report["settings"]["tasks_file"])
    for subject in report["subjects"]:
        _show_subject(subject, report)
        if subject["sources"]:
            _show_sources(subject, k)
        if subject["not_executed"]:
            _show_not_executed(subject)
        best = subject["best_of_k"]
        if subject["headroom"]:
            _show_headroom(subject)
        elif best:
            reward = report["settings"]["reward"]
            p = "" if best["p"] is None else f", McNemar p = {best['p']:.3g}"
            say(
                f"{subject['name']}, best of {k} by {reward} against greedy: "
                f"{_with_interval(best)}{p}: {best['verdict']}"
            )
        if subject["selection"]:
            _show_selection(subject)
    for comparison in report["comparisons"]:
        for metric, row in comparison["all"].items():
            _show_difference(comparison, metric, row)


def _show_subject(subject: Row, report: Row) -> None:
    groups = dict(subject["domains"])
    for name, part in subject["unseen"].items():
        groups[f"unseen {name}"] = part
    names = [f"pass@{report['k']}" if name == "pass@K" else name for name in METRICS]
    rows: list[Sequence[str]] = []
    for name in dict.fromkeys(names):  # with one sample, pass@K is pass@1
        whole = subject["all"][name]
        ends = "–" if whole["low"] is None else f"{number(whole['low'])} to {number(whole['high'])}"
        parts = [number(part[name]["value"]) for part in groups.values()]
        rows.append((name.replace("_", " "), number(whole["value"]), ends, *parts))
    show_table(subject["name"], (f"{report['tasks']} tasks", "all", "95 % interval", *groups), rows)
    say(f"{subject['name']}, labels used: {subject['labels']:,}")


def _show_references(found: Row, file: str) -> None:
    """How many tasks of a file can be judged, and why the others cannot be."""
    share = number(found["judged"] / found["tasks"], 2)
    own = f"; {found['own']} have a tree or a database of their own" if found["own"] else ""
    say(f"{file}: {found['judged']} of {found['tasks']} tasks can be judged ({share}){own}")
    for row in found["reasons"]:
        say(f"  {row['tasks']} cannot: {_first_of(row)}")
    for row in found["gated"]:
        say(f"  {row['tasks']} have a reference that scores 0 behind the gates: {_first_of(row)}")


def _first_of(row: Row) -> str:
    """A reason with the first task that has it."""
    example = f": {row['example']}" if row["example"] else ""
    return f"{row['reason']} (the first, on line {row['line']}{example})"


def _show_sources(subject: Row, k: int) -> None:
    """The main figures of the tasks of each source."""
    names = list(dict.fromkeys(("greedy", "pass@1", f"pass@{k}", "not_executed", "auc")))
    rows: list[Sequence[str]] = []
    for source, part in subject["sources"].items():
        cells = [number(part[name]["value"]) for name in names]
        rows.append((source, str(part["exact"]["tasks"]), *cells))
    header = [name.replace("_", " ") for name in names]
    show_table(f"{subject['name']}: by source", ("source", "tasks", *header), rows, sentences=("source",))


def _show_headroom(subject: Row) -> None:
    """Accuracy of each choice by the number of samples; that minus greedy for the largest number."""
    found = subject["headroom"]
    sizes = found["sizes"]
    greedy = number(found["greedy"]["value"])
    blind = number(subject["all"]["pass@1"]["value"])
    rows: list[Sequence[str]] = [
        ("greedy", "", *[greedy] * len(sizes), "", "", ""),
        ("pass@1", "", *[blind] * len(sizes), "", "", ""),
    ]
    for name, last in sizes[-1]["choices"].items():
        cells = [number(size["choices"][name]["accuracy"]["value"]) for size in sizes]
        within = found["auc_within"].get(name)
        auc = "" if within is None else number(within["value"])
        change = last["headroom"]
        gain = (signed(change["value"]), interval(change, True), change["verdict"])
        rows.append((name, auc, *cells, *gain))
    header = ["choice", "AUC"]
    for size in sizes:
        header.append(f"of {size['samples']}")
    title = f"{subject['name']}: choice among the greedy command and N samples; AUC within a task"
    ends = (f"headroom of {sizes[-1]['samples']}", "95 % interval", "than greedy")
    show_table(title, (*header, *ends), rows)
    say("headroom: the choice minus greedy, the most that learning from what is chosen can gain")


def _show_selection(subject: Row) -> None:
    """What a run wrote, what it accepted of it, and what its updates made of that."""
    found = subject["selection"]
    cycles = found["cycles"]
    step = max(1, math.ceil(len(cycles) / CYCLES))
    shown = cycles[::-1][::step][::-1]  # the last one among them
    rows: list[Sequence[str]] = [("start", "", "", number(found["start"]))]
    for row in shown:
        written, accepted = _share(row["written"]), _share(row["accepted"])
        rows.append((str(row["cycle"]), written, accepted, number(row["held_out"])))
    change = found["held_out"]
    moved = f"{signed(change['value'])} {interval(change, True)}".strip()
    rows.append(("all", _share(found["written"]), _share(found["accepted"]), moved))
    header = ("cycle", "right among written", "right among accepted", "held-out greedy after it")
    show_table(f"{subject['name']}: what it wrote, accepted and became", header, rows)
    if found["line"]:
        say(f"{subject['name']}: {found['line']}")


def _share(row: Row) -> str:
    if not row["verified"]:
        return "–"
    return f"{number(row['value'])} of {row['verified']}"


def _show_not_executed(subject: Row) -> None:
    reasons = [row["reason"] for row in subject["reasons"] if row["status"] == "not_executed"]
    why = reasons[0] if reasons else "no reason was recorded"
    say(f"{subject['not_executed']} commands could not be executed and are excluded: {why}")


def _show_difference(comparison: Row, metric: str, row: Row) -> None:
    counts = ""
    if row["p"] is not None:
        counts = f", {row['gained']} gained, {row['lost']} lost, McNemar p = {row['p']:.3g}"
    verdict = row["verdict"]
    if metric == "reward":  # a score is higher or lower, never better or worse
        verdict = {"better": "higher", "worse": "lower"}.get(verdict, verdict)
    pair = f"{comparison['second']} against {comparison['first']}"
    say(f"{pair}, {metric}: {_with_interval(row)}{counts}: {verdict}")


def _with_interval(row: Row) -> str:
    return f"{signed(row['value'])} {interval(row, True)}".strip()
