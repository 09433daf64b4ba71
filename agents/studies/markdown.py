"""A study as STUDY.md: its answer, its tables, and the charts that are in the folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.cli.display import interval, number, signed
from agents.pages.page import thousands, words
from agents.studies.answer import (
    answer,
    capitalized,
    label,
    notes,
    share,
    share_interval,
    told,
    took,
    transfer_domains,
)

Row = Mapping[str, Any]
MAIN = (
    "arm",
    "seeds",
    "held-out accuracy, start → end",
    "gain",
    "pass@1 gain",
    "gain minus reference",
    "gap closed",
    "AUC",
    "AUC within a task",
    "own score",
)
HEALTH = (
    "arm",
    "distinct, first → last",
    "entropy",
    "length",
    "alarms",
    "labels",
    "candidates",
    "to +0.10",
    "collapse",
    "seconds, of them learning",
    "judge calls",
    "tokens written, scored",
    "other models, parameters",
)
THEORY = (
    "arm",
    "reward",
    "inverse accuracy",
    "AUC",
    "AUC within a task",
    "gain",
    "gain minus reference",
    "rank correlation of inverse and AUC over intents",
)


def markdown(study: Row, folder: Path) -> str:
    """The whole file; a chart is shown where its PNG is in the folder."""
    lines = [f"# Study {study['study']}", "", f"    {study['command']}", ""]
    if study["about"]:
        lines += [study["about"], ""]
    finished = f"{study['finished']} of {study['runs']} runs finished"
    lines += [f"{len(study['arms'])} arms, {finished}, {took(study)}.", "", *answer(study), ""]
    if study["failed"]:
        lines += ["Failed runs, which are left out everywhere:", ""]
        lines += [f"- {failure(row)}: {_cell(row['why'])}" for row in study["failed"]]
        lines += [""]
    for place, (group, names) in enumerate(study["groups"].items(), 1):
        lines += _group(study, place, group, names, folder)
    score = _picture(folder, "score.png", "change of its own score against gain")
    score += _picture(folder, "reward.png", "own score and held-out accuracy")
    if score:
        lines += ["## Own score against held-out accuracy", "", *score]
    intents = _picture(folder, "intents.png", "gain by intent")
    if intents:
        lines += ["## Gain by intent", "", *intents]
    lines += _transfer(study)
    if study["theory"]:
        lines += _theory(study, folder)
    lines += ["## How to read it", ""]
    lines += [f"- {note}" for note in notes(study)]
    return "\n".join([*lines, ""])


def failure(row: Row) -> str:
    """What failed: a run, by its arm and seed, or an evaluation."""
    if row["seed"] is None:
        return str(row["arm"])
    return f"{row['arm']}, seed {row['seed']}"


def _group(study: Row, place: int, group: str, names: Sequence[str], folder: Path) -> list[str]:
    arms = study["arms"]
    return [
        f"## {capitalized(group)}",
        "",
        *_picture(folder, f"forest-{place}.png", "gain of each arm, with intervals"),
        *_table(MAIN, [_main_cells(name, arms[name]) for name in names]),
        *_table(HEALTH, [_health_cells(name, arms[name]) for name in names]),
        *_picture(folder, f"curves-{place}.png", "held-out accuracy over candidates scored"),
    ]


def _main_cells(name: str, arm: Row) -> list[str]:
    against = arm["against_reference"]
    verdict = "" if against["value"] is None else f", {against['verdict']}"
    return [
        label(name, arm),
        f"{len(arm['runs'])}/{len(arm['wanted'])}",
        f"{number(arm['start'])} → {number(arm['end'])}",
        f"**{signed(arm['gain']['value'])}** {interval(arm['gain'], True)}",
        told(arm["pass@1_gain"]),
        told(against) + verdict,
        f"{share(arm['gap_closed'])} {share_interval(arm['gap_closed'])}",
        _two(arm["auc"]),
        _two(arm["auc_within"]),
        told(arm["score_change"]),
    ]


def _health_cells(name: str, arm: Row) -> list[str]:
    alarms = ", ".join(f"{words(alarm)} ({count})" for alarm, count in arm["alarms"].items())
    if arm["diverged"] is not None:
        alarms += f"; divergence from {thousands(arm['diverged'])} candidates on"
    return [
        label(name, arm),
        _two(arm["distinct"]),
        _two(arm["entropy"]),
        _two(arm["length"]),
        alarms or "–",
        thousands(arm["labels"]),
        thousands(arm["candidates"]),
        thousands(arm["candidates_to_rise"]),
        thousands(arm["collapse_step"]),
        f"{thousands(arm['seconds'])}, {thousands(arm['learning'])}",
        thousands(arm["judge_calls"]),
        f"{thousands(arm['tokens_written'])}, {thousands(arm['tokens_scored'])}",
        thousands(arm["other_models"]),
    ]


def _transfer(study: Row) -> list[str]:
    domains = transfer_domains(study)
    if not domains:
        return []
    rows = []
    for name, arm in study["arms"].items():
        if arm["transfer"]:
            cells = [label(name, arm), arm["domain"]]
            for domain in domains:
                cells.append(told(arm["transfer"][domain]) if domain in arm["transfer"] else "–")
            rows.append(cells)
    return ["## Transfer between domains", "", *_table(("arm", "trained on", *domains), rows)]


def _theory(study: Row, folder: Path) -> list[str]:
    rows = []
    for name, row in study["theory"].items():
        rows.append(
            [
                name,
                row["reward"],
                number(row["inverse"]["value"]),
                number(row["auc"]["value"]),
                number(row["auc_within"]["value"]),
                told(row["gain"]),
                told(row["against_reference"]),
                told(row["correlation"]),
            ]
        )
    return [
        "## Why it works, and when it stops",
        "",
        *_picture(folder, "theory.png", "AUC by intent over accuracy of the inverse direction"),
        *_table(THEORY, rows),
        *_picture(
            folder,
            "boundary.png",
            "gain over accuracy of the inverse direction and over the AUC of the reward",
        ),
    ]


# ---- Markdown ----


def _picture(folder: Path, name: str, text: str) -> list[str]:
    return [f"![{text}]({name})", ""] if (folder / name).is_file() else []


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_row(head), "|" + "---|" * len(head), *map(_row, rows), ""]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(_cell(cell).strip() for cell in cells) + " |"


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _two(pair: Iterable[float | None]) -> str:
    return " → ".join(map(number, pair))
