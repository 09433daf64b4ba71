"""The page of an evaluation: what its template asks for beyond the plain values of the report.

Charts are SVG of the template, in the page's own colours; every number in them stands in a table as well.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.pages.page import LONGEST, write_page

# Subjects that a chart can tell apart by colour, mark and dashes; the seventh looks like the first.
STYLES = 6
Row = Mapping[str, Any]
Points = Sequence[tuple[float, float]]
Ends = tuple[float, float]

# (key in the report, label, meaning); K is filled in.
METRICS = (
    ("greedy", "greedy", "tasks whose most probable command is right"),
    ("pass@1", "pass@1", "sampled commands that are right"),
    ("pass@K", "pass@{k}", "tasks with at least one right command among {k} samples"),
    ("exact", "exact match", "greedy commands equal to the reference as text"),
    ("inverse", "inverse", "reference commands from which the task is reconstructed"),
    ("invalid", "invalid", "verified commands that are not a valid command of the domain"),
    ("not_executed", "not executed", "commands that could not be executed; excluded from all rates"),
    ("distinct", "distinct", "distinct commands among all samples"),
)
REWARD_METRICS = (
    ("auc", "AUC", "probability that a right command scores above a wrong one, over all tasks"),
    ("auc_within", "AUC within a task", "the same among the commands of one task, where a choice is made"),
    ("pass@1", "pass@1", "accuracy of a sample picked blindly: what the reward has to beat"),
    ("best_of_k", "best of {k} by reward", "accuracy of the best-scored sample of each task"),
    ("pass@K", "pass@{k}", "accuracy if a right sample were always picked: the ceiling"),
    ("risk_area", "area under risk-coverage", "mean share wrong over all coverages; lower is better"),
    (
        "calibration_error",
        "calibration error",
        "mean distance between score and share right; 0 is calibrated",
    ),
    ("reward", "mean score", "what the reward gives the sampled commands"),
    ("reward_minus_truth", "score minus accuracy", "above 0, the reward is too optimistic"),
    ("abstained", "abstained", "sampled commands that the reward could not score"),
)
COMPARED = ("greedy", "pass@1", "pass@K", "inverse", "reward")
UNSEEN = {"values": "unseen values", "paraphrase": "unseen paraphrases"}
COVERAGES = (0.1, 0.25, 0.5, 0.75, 1.0)
NOTHING: Row = {"value": None, "low": None, "high": None, "tasks": 0}
WIDTH, HEIGHT = 300.0, 200.0  # of the box that a chart's lines are drawn in


def write_evaluation(report: Row, path: Path) -> None:
    """Writes the report, plain values as in report.json, as HTML.

    Raises:
        OSError: the file cannot be written.
    """
    k, subjects = report["k"], report["subjects"]
    alone = len(subjects) == 1
    compared = [row for row in METRICS + REWARD_METRICS if row[0] in COMPARED]

    def style(index: int) -> str:
        """A subject's look: the first of several is grey, one alone is not."""
        return f"s{(1 if alone else index) % STYLES}"

    write_page(
        "evaluation.html.jinja",
        path,
        report=report,
        k=k,
        subjects=subjects,
        comparisons=list(zip(report["comparisons"], subjects[1:], strict=True)),
        metrics=with_k(METRICS, k),
        reward_metrics=with_k(REWARD_METRICS, k),
        differences=with_k(compared, k),
        risks=[(subject["name"], risks_at(subject["risk_coverage"])) for subject in subjects],
        coverages=COVERAGES,
        risk_chart=risk_chart(subjects),
        calibration_chart=calibration_chart(subjects),
        style=style,
        estimate=estimate,
        groups=groups,
        place=place,
        marked=marked,
        weakest_first=weakest_first,
        changed=changed,
        movements=movements,
    )


def with_k(rows: Iterable[tuple[str, str, str]], k: int) -> list[tuple[str, str, str]]:
    """(key, label, meaning) with K filled in, each key once: with one sample, pass@K is pass@1."""
    found: dict[str, tuple[str, str, str]] = {}
    for key, label, meaning in rows:
        name = f"pass@{k}" if key == "pass@K" else key
        found.setdefault(name, (name, label.format(k=k), meaning.format(k=k)))
    return list(found.values())


# ---- rows ----


def estimate(row: Row | None, name: str) -> Row:
    """A metric of a row, or an empty estimate where it was not measured."""
    found: Row | None = row.get(name) if row else None
    return found or NOTHING


def groups(row: Row) -> list[tuple[str, Row]]:
    """(name, metrics) of all tasks, each domain and source if there are several, of unseen ones by kind."""
    parts = [("all", row["all"])]
    if len(row["domains"]) > 1:
        parts += row["domains"].items()
    parts += row["sources"].items()
    for name, part in row["unseen"].items():
        parts.append((UNSEEN.get(name, f"unseen {name}"), part))
    return parts


def weakest_first(subjects: Sequence[Row]) -> list[str]:
    """Intents by the last subject's greedy accuracy, then by its inverse; those not measured at the end."""
    intents = subjects[-1]["intents"]

    def rank(row: Row, metric: str) -> float:
        value: float | None = estimate(row, metric)["value"]
        return 2.0 if value is None else value

    return sorted(
        intents, key=lambda name: (rank(intents[name], "greedy"), rank(intents[name], "inverse"), name)
    )


def changed(intents: Mapping[str, Row]) -> tuple[list[tuple[str, Row]], list[str]]:
    """Intents on which two subjects differ in either direction, most improved first; and the other names."""

    def change(row: Row, metric: str) -> float:
        return estimate(row, metric)["value"] or 0.0

    differing, same = [], []
    for name, row in intents.items():
        greedy, inverse = change(row, "greedy"), change(row, "inverse")
        if greedy or inverse:
            differing.append((-greedy, -inverse, name))
        else:
            same.append(name)
    return [(name, intents[name]) for _, _, name in sorted(differing)], sorted(same)


def movements(rows: Sequence[tuple[str, Row]]) -> tuple[int, int, int, int]:
    """How many intents rose and fell in greedy accuracy, and how many are shown to be better and worse."""
    rising = falling = better = worse = 0
    for _, row in rows:
        greedy = estimate(row, "greedy")
        value, verdict = greedy["value"] or 0.0, greedy.get("verdict")
        rising += value > 0
        falling += value < 0
        better += verdict == "better"
        worse += verdict == "worse"
    return rising, falling, better, worse


def marked(command: str, reference: str) -> list[tuple[str, bool]]:
    """The command in pieces: (text, whether the reference has other words there)."""
    pieces = re.findall(r"\s+|\S+", command[:LONGEST])
    wanted = re.findall(r"\s+|\S+", reference[:LONGEST])
    if len(command) > LONGEST or len(pieces) > 200 or len(wanted) > 200:
        return [(command, False)]
    found = []
    matcher = difflib.SequenceMatcher(None, pieces, wanted, autojunk=False)
    for tag, start, end, _, _ in matcher.get_opcodes():
        text = "".join(pieces[start:end])
        if tag == "equal":
            found.append((text, False))
            continue
        before, words, after = re.fullmatch(r"(\s*)(.*?)(\s*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
        found += [(before, False), (words, True), (after, False)]
    return [(text, other) for text, other in found if text]


# ---- charts ----


def place(value: float, low: float = 0.0, high: float = 1.0) -> str:
    """A position along an axis from `low` to `high`, in percent of its length."""
    inside = min(max(value, low), high)
    return f"{100 * (inside - low) / (high - low):.4g}%"


def risks_at(curve: Sequence[Mapping[str, float]]) -> list[tuple[float, float] | None]:
    """(risk, score needed to act) at each of the coverages; None without a curve."""
    found: list[tuple[float, float] | None] = []
    for share in COVERAGES:
        reached = [point for point in curve if point["coverage"] >= share - 1e-9]
        found.append((reached[0]["risk"], reached[0]["score"]) if reached else None)
    return found


def risk_chart(subjects: Sequence[Row]) -> dict[str, Any]:
    """Risk over coverage, one line per subject."""
    curves = []
    highest = 0.0
    for subject in subjects:
        curve = [(point["coverage"], point["risk"]) for point in subject["risk_coverage"]]
        highest = max([highest, *(risk for _, risk in curve)])
        curves.append(curve)
    top = min(end for end in (0.1, 0.2, 0.5, 1.0) if highest <= end)
    return _chart(curves, (0.0, 1.0), (0.0, top))


def calibration_chart(subjects: Sequence[Row]) -> dict[str, Any]:
    """Share right over mean score, one line per subject."""
    curves = []
    scores = [0.0, 1.0]
    for subject in subjects:
        curve = [(group["score"], group["right"]) for group in subject["calibration"]]
        scores += [score for score, _ in curve]
        curves.append(curve)
    return _chart(curves, (min(scores), max(scores)), (0.0, 1.0))


def _chart(curves: Sequence[Points], across: Ends, up: Ends) -> dict[str, Any]:
    """What the template draws: lines, ticks and the diagonal, in places of the box."""

    def x_of(value: float) -> str:
        return f"{WIDTH * (value - across[0]) / (across[1] - across[0]):.1f}"

    def y_of(value: float) -> str:
        return f"{HEIGHT - HEIGHT * (value - up[0]) / (up[1] - up[0]):.1f}"

    lines = []
    for index, curve in enumerate(curves):
        if curve:
            lines.append((index, [(x_of(x), y_of(y)) for x, y in curve]))
    return {
        "lines": lines,
        "across": [(f"{value:.3g}", x_of(value)) for value in _ticks(across)],
        "up": [(f"{value:.3g}", y_of(value)) for value in _ticks(up)],
        "diagonal": (x_of(0.0), x_of(1.0)),
    }


def _ticks(ends: Ends) -> list[float]:
    low, high = ends
    return [low + step / 4 * (high - low) for step in range(5)]
