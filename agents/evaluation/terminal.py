"""The report of an evaluation on a terminal: metrics of every subject, and the comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agents.cli.display import interval, number, show_table, signed

Row = Mapping[str, Any]
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
    for subject in report["subjects"]:
        _show_subject(subject, report)
        if subject["not_executed"]:
            _show_not_executed(subject)
        best = subject["best_of_k"]
        if best:
            reward = report["settings"]["reward"]
            p = "" if best["p"] is None else f", McNemar p = {best['p']:.3g}"
            print(
                f"{subject['name']}, best of {k} by {reward} against greedy: "
                f"{_with_interval(best)}{p}: {best['verdict']}"
            )
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


def _show_not_executed(subject: Row) -> None:
    reasons = [row["reason"] for row in subject["reasons"] if row["status"] == "not_executed"]
    why = reasons[0] if reasons else "no reason was recorded"
    print(f"{subject['not_executed']} commands could not be executed and are excluded: {why}")


def _show_difference(comparison: Row, metric: str, row: Row) -> None:
    counts = ""
    if row["p"] is not None:
        counts = f", {row['gained']} gained, {row['lost']} lost, McNemar p = {row['p']:.3g}"
    verdict = row["verdict"]
    if metric == "reward":  # a score is higher or lower, never better or worse
        verdict = {"better": "higher", "worse": "lower"}.get(verdict, verdict)
    pair = f"{comparison['second']} against {comparison['first']}"
    print(f"{pair}, {metric}: {_with_interval(row)}{counts}: {verdict}")


def _with_interval(row: Row) -> str:
    return f"{signed(row['value'])} {interval(row, True)}".strip()
