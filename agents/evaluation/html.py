"""The report of `agents.evaluate` as one HTML page that needs nothing else: no script, no font, no network.

What models and files wrote is escaped, and characters that hide or reorder text are shown as `⟨U+202E⟩`. The same report gives the
same bytes. Charts are SVG of the template, in the page's own colours; every number in them is in a table beside them too.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

LONGEST = 2000  # characters of one text; what is cut is in report.json
STYLES = 6  # subjects that a chart can tell apart by colour, mark and dashes; the next one looks like the first again
BLANKS = "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"  # drawn as nothing, though Unicode counts them as letters or marks
HIDDEN = {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}
Estimate = Mapping[str, Any]

METRICS = (
    ("greedy", "greedy", "tasks whose most probable command is right"),
    ("pass@1", "pass@1", "sampled commands that are right"),
    ("pass@K", "pass@{k}", "tasks with at least one right command among {k} sampled"),
    ("exact", "exact match", "greedy commands that equal the reference as text"),
    ("inverse", "inverse", "reference commands whose task is read back rightly"),
    ("invalid", "invalid", "verified commands that are no command of the domain at all"),
    (
        "not_executed",
        "not executed",
        "commands of which nothing can be said; they count neither as right nor as wrong",
    ),
    ("distinct", "distinct", "different ones among all sampled commands"),
)
REWARD_METRICS = (
    (
        "auc",
        "AUC",
        "probability that a right command scores above a wrong one, over all tasks; 0.5 is chance",
    ),
    (
        "auc_within",
        "AUC within a task",
        "the same among the commands of one task, where choosing happens; 0.5 is chance",
    ),
    ("pass@1", "pass@1", "truth of a command taken blindly: what the reward has to beat"),
    ("best_of_k", "best of {k} by reward", "truth of the best-scored command of each task"),
    ("pass@K", "pass@{k}", "truth if the right command were always found: the most that choosing can give"),
    (
        "risk_area",
        "area under risk-coverage",
        "mean share of wrong commands over all coverages; lower is better",
    ),
    (
        "calibration_error",
        "calibration error",
        "mean distance between score and share right; 0 is calibrated",
    ),
    ("reward", "mean score", "what the reward gives the sampled commands"),
    ("reward_minus_truth", "score minus truth", "above 0: the reward flatters"),
    ("abstained", "abstained", "sampled commands that the reward could not score"),
)
DIFFERENCES = ("greedy", "pass@1", "pass@K", "inverse", "reward")
COVERAGES = (0.1, 0.25, 0.5, 0.75, 1.0)
NOTHING: Estimate = {"value": None, "low": None, "high": None, "tasks": 0}


def page_environment(folder: Path) -> Environment:
    """Templates of a folder, in which all that is shown is escaped and made visible, with the filters for numbers."""
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": signed, "interval": interval, "p_value": p_value}
    return environment


def write_page(report: Mapping[str, Any], path: Path) -> None:
    """Writes the report, plain values as in report.json, as HTML.

    Raises:
        OSError: the file cannot be written.
    """
    environment = page_environment(Path(__file__).parent)
    environment.filters |= {
        "place": place,
        "marked": marked,
        "intent_order": weakest_first,
        "changed": changed,
        "movements": movements,
        "words": lambda name: str(name).replace("_", " "),
    }
    k = report["k"]
    page = environment.get_template("report.html.jinja").render(
        report=report,
        k=k,
        subjects=report["subjects"],
        comparisons=list(zip(report["comparisons"], report["subjects"][1:], strict=True)),
        metrics=_with_k(METRICS, k),
        reward_metrics=_with_k(REWARD_METRICS, k),
        differences=[
            row for row in _with_k(METRICS + REWARD_METRICS, k) if row[0] in {f"pass@{k}", *DIFFERENCES}
        ],
        groups=groups,
        estimate=lambda row, name: (row or {}).get(name) or NOTHING,
        style=lambda index: f"s{(index if len(report['subjects']) > 1 else 1) % STYLES}",
        risks=[(subject["name"], risks_at(subject["risk_coverage"])) for subject in report["subjects"]],
        coverages=COVERAGES,
        risk_chart=risk_chart(report["subjects"]),
        calibration_chart=calibration_chart(report["subjects"]),
    )
    path.write_text(page, encoding="utf-8", newline="\n")


def visible(value: Any) -> Any:
    """Text without a character that could hide, reorder or overwrite other text; other values as they are."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    if len(value) > LONGEST:
        value = f"{value[:LONGEST]} … and {len(value) - LONGEST} more characters"
    return "".join(map(_shown, value))


def _shown(character: str) -> str:
    if character == "\n":
        return "↵\n"
    category = unicodedata.category(character)
    blank = (
        character in BLANKS or "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
    )
    if category in HIDDEN or blank or (category == "Zs" and character != " "):
        return f"⟨U+{ord(character):04X}⟩"
    return character


# ---- numbers ----


def number(value: float | None) -> str:
    """A rate with three digits."""
    return "–" if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """A difference with three digits and its sign; none for what rounds to 0."""
    return "–" if value is None else re.sub(r"^[+-](?=0\.000$)", "", f"{value:+.3f}")


def interval(row: Estimate, sign: bool = False) -> str:
    """The ends of an interval in brackets, empty where there is none."""
    show = signed if sign else number
    return "" if row.get("low") is None else f"[{show(row['low'])}, {show(row['high'])}]"


def p_value(p: float | None) -> str:
    """A p-value in the usual form."""
    return (
        "–" if p is None else "p < 0.0001" if p < 0.0001 else f"p = {p:.4f}" if p < 0.01 else f"p = {p:.2f}"
    )


def place(value: float, low: float = 0.0, high: float = 1.0) -> str:
    """A position along an axis from `low` to `high`, in percent of its length."""
    return f"{100 * (min(max(value, low), high) - low) / (high - low):.4g}%"


def _with_k(rows: Iterable[tuple[str, str, str]], k: int) -> list[tuple[str, str, str]]:
    """(key in the report, label, meaning) with K filled in, each key once: with one sample, pass@K is pass@1."""
    found: dict[str, tuple[str, str, str]] = {}
    for key, label, meaning in rows:
        name = f"pass@{k}" if key == "pass@K" else key
        found.setdefault(name, (name, label.format(k=k), meaning.format(k=k)))
    return list(found.values())


# ---- rows ----


def groups(row: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(name, metrics) of all tasks, of each domain where there are several, and of each kind of unseen tasks."""
    unseen = {"values": "unseen values", "paraphrase": "unseen paraphrases"}
    parts = list(row["domains"].items()) if len(row["domains"]) > 1 else []
    return [
        ("all", row["all"]),
        *parts,
        *((unseen.get(name, f"unseen {name}"), part) for name, part in row["unseen"].items()),
    ]


def weakest_first(subjects: Sequence[Mapping[str, Any]]) -> list[str]:
    """Intents by the greedy accuracy of the last subject, then by its inverse accuracy; those not measured at the end."""
    intents = subjects[-1]["intents"]

    def key(name: str) -> tuple[float, float, str]:
        greedy, inverse = (
            (intents[name].get(metric) or NOTHING)["value"] for metric in ("greedy", "inverse")
        )
        return 2.0 if greedy is None else greedy, 2.0 if inverse is None else inverse, name

    return sorted(intents, key=key)


def changed(
    intents: Mapping[str, Mapping[str, Any]],
) -> tuple[list[tuple[str, Mapping[str, Any]]], list[str]]:
    """Intents on which two subjects differ in either direction, the most improved first; and the names of the others."""

    def value(row: Mapping[str, Any], metric: str) -> float:
        return (row.get(metric) or NOTHING)["value"] or 0.0

    differing = [
        (name, row) for name, row in intents.items() if value(row, "greedy") or value(row, "inverse")
    ]
    differing.sort(key=lambda item: (-value(item[1], "greedy"), -value(item[1], "inverse"), item[0]))
    names = {name for name, _ in differing}
    return differing, sorted(name for name in intents if name not in names)


def movements(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[int, int, int, int]:
    """How many of these intents went up and down in greedy accuracy, and how many are shown to be better and worse."""
    found = [row.get("greedy") or NOTHING for _, row in rows]
    values = [row["value"] or 0.0 for row in found]
    verdicts = [row.get("verdict") for row in found]
    return (
        sum(value > 0 for value in values),
        sum(value < 0 for value in values),
        verdicts.count("better"),
        verdicts.count("worse"),
    )


def marked(command: str, reference: str) -> list[tuple[str, bool]]:
    """The command in pieces: (text, whether the reference has other words in its place). Empty for an empty command."""
    pieces = re.findall(r"\s+|\S+", command[:LONGEST])
    wanted = re.findall(r"\s+|\S+", reference[:LONGEST])
    if len(command) > LONGEST or len(pieces) > 200 or len(wanted) > 200:
        return [(command, False)]
    found = []
    for tag, start, end, _, _ in difflib.SequenceMatcher(None, pieces, wanted, autojunk=False).get_opcodes():
        text = "".join(pieces[start:end])
        words = text.strip()
        before, after = text[: text.find(words)], text[text.find(words) + len(words) :]
        found += [(text, False)] if tag == "equal" else [(before, False), (words, True), (after, False)]
    return [(text, other) for text, other in found if text]


# ---- charts: lines in a box of 300 x 200 ----


def risks_at(curve: Sequence[Mapping[str, float]]) -> list[tuple[float, float] | None]:
    """(risk, score from which on one acts) at each of the coverages; None without a curve."""
    return [
        next(((point["risk"], point["score"]) for point in curve if point["coverage"] >= share - 1e-9), None)
        for share in COVERAGES
    ]


def risk_chart(subjects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Risk over coverage, a line a subject."""
    curves = [
        [(point["coverage"], point["risk"]) for point in subject["risk_coverage"]] for subject in subjects
    ]
    highest = max((risk for curve in curves for _, risk in curve), default=0.0)
    top = next(end for end in (0.1, 0.2, 0.5, 1.0) if highest <= end)
    return _chart(curves, (0.0, 1.0), (0.0, top))


def calibration_chart(subjects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Share right over mean score, a line a subject."""
    curves = [[(group["score"], group["right"]) for group in subject["calibration"]] for subject in subjects]
    scores = [score for curve in curves for score, _ in curve]
    return _chart(curves, (min([0.0, *scores]), max([1.0, *scores])), (0.0, 1.0))


def _chart(
    curves: Sequence[Sequence[tuple[float, float]]], across: tuple[float, float], up: tuple[float, float]
) -> dict[str, Any]:
    def scaled(value: float, ends: tuple[float, float], length: float) -> float:
        return length * (value - ends[0]) / (ends[1] - ends[0])

    def ticks(ends: tuple[float, float]) -> list[tuple[str, float]]:
        places = [step / 4 for step in range(5)]
        return [(f"{ends[0] + share * (ends[1] - ends[0]):.3g}", share) for share in places]

    lines = []
    for index, curve in enumerate(curves):
        points = [(scaled(x, across, 300.0), 200.0 - scaled(y, up, 200.0)) for x, y in curve]
        lines.append((index, [(f"{x:.1f}", f"{y:.1f}") for x, y in points]))
    zero, one = scaled(0.0, across, 300.0), scaled(1.0, across, 300.0)
    return {
        "lines": [(index, points) for index, points in lines if points],
        "across": [(label, f"{300 * share:.1f}") for label, share in ticks(across)],
        "up": [(label, f"{200 - 200 * share:.1f}") for label, share in ticks(up)],
        "diagonal": (f"{zero:.1f}", f"{one:.1f}"),
    }
