"""Runs side by side: held-out accuracy task by task, as plain values, a page, a chart and TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agents.cli.display import interval, number, say, show_table, signed
from agents.cli.files import write_json
from agents.evaluation.paired import by_task
from agents.pages.page import write_page
from agents.policy.labels import learnt_from
from agents.studies.charts import Line, Panel, look, overlay
from agents.studies.runs import HeldOutTask, RunRecord, read_selection, read_truth
from agents.studies.settings import SAME_EVALUATION, SAME_SCALE

Row = Mapping[str, Any]
PANELS = (
    ("eval/greedy", "held-out accuracy, greedy"),
    ("eval/pass@1", "held-out accuracy, sampled (pass@1)"),
    ("reward/mean", "own score"),
    ("eval/auc_within", "AUC of the reward within a task"),
    ("policy/entropy", "entropy, nats per token"),
    ("policy/kl", "KL to the base, nats per token"),
    ("policy/distinct", "share of distinct commands"),
    ("policy/length", "length, tokens"),
)
NOTES = (
    "Intervals are 95 % bootstrap intervals over held-out tasks, paired where two evaluations are "
    "compared. They do not cover seed-to-seed variation; use python -m agents.study for that.",
    "A run is called better or worse only where the interval excludes 0 and McNemar's exact test does not "
    "contradict it.",
    "Accuracy before the first cycle and after the last is of all held-out tasks. The curves are of the "
    "subset that is evaluated after every cycle; a run that has not ended is compared on that subset.",
    "The x-axis is the number of candidates scored, the same for every trainer.",
)
OF_THE_PLACE = ("name", "output", "config", "resume")  # settings that say nothing about how a run learns


# ---- the report ----


def make_report(records: Sequence[RunRecord]) -> dict[str, Any]:
    """Everything as plain values: what compare.json holds."""
    first = records[0]
    first_end = read_truth(first, "end")
    runs, comparisons = [], []
    for record in records:
        end = read_truth(record, "end")
        runs.append(describe(record, read_truth(record, "start"), end))
        if record is not first:
            greedy, sampled = paired(first_end, end, "greedy"), paired(first_end, end, "pass_at_1")
            names = {"first": first.name, "second": record.name}
            comparisons.append({**names, "greedy": greedy, "pass@1": sampled})
    return {
        "evaluation": {key: first.settings.get(key) for key in SAME_EVALUATION},
        "scales": list(short_scales(records).values()),
        "runs": runs,
        "comparisons": comparisons,
        "differing": differing_settings(records),
    }


def describe(record: RunRecord, start: Sequence[HeldOutTask], end: Sequence[HeldOutTask]) -> dict[str, Any]:
    """One run: what it is, how far it is, and its accuracy before and after."""
    state = "finished"
    if not record.finished:
        state = f"cycle {record.cycles} of {record.settings.get('cycles')}"
    keeps_best = record.settings.get("keep", "last") != "last"
    found = {
        "name": record.name,
        "folder": str(record.folder),
        "trainer": record.trainer,
        "reward": str(record.settings.get("reward")),
        "labelled": record.labelled,
        "labels": record.labels,
        "learnt_from": learnt_from(record.results),
        "usage": record.usage,
        "state": state,
        "kept": record.results.get("kept") if keeps_best else None,
    }
    for metric in ("greedy", "pass@1", "auc_within"):
        found[metric] = [record.whole("start", metric), record.whole("end", metric)]
    return {
        **found,
        "gain": paired(start, end, "greedy"),
        "selection": read_selection(record),
        "score_change": record.score_change,
        "candidates": record.candidates,
        "seconds": record.seconds,
        "alarms": record.alarms,
        "diverged": record.diverged,
    }


def paired(first: Sequence[HeldOutTask], second: Sequence[HeldOutTask], metric: str) -> dict[str, Any]:
    """Second minus first on the tasks that both have, with its interval over tasks and McNemar's test."""
    ends = []
    for tasks in (first, second):
        ends.append({task.task_id: getattr(task, metric) for task in tasks})
    found = by_task(*ends)
    return {**asdict(found), "verdict": found.verdict}


def scale(record: RunRecord) -> str:
    """The scale of a run's own score, in words; scores can be compared only on the same scale."""
    return ", ".join(f"{key} {record.settings.get(key)}" for key in SAME_SCALE)


def short_scales(records: Sequence[RunRecord]) -> dict[str, str]:
    """Scale -> what charts and tags call it: the reward's name where that tells them apart."""
    rewards = {scale(record): str(record.settings.get("reward")) for record in records}
    names = list(rewards.values())
    short = {}
    for text, reward in rewards.items():
        short[text] = reward if names.count(reward) == 1 else text
    return short


def differing_settings(records: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs."""
    found: dict[str, list[Any]] = {}
    for record in records:
        for key in record.settings:
            values = [other.settings.get(key) for other in records]
            if key not in OF_THE_PLACE and any(value != values[0] for value in values):
                found[key] = values
    return found


# ---- files ----


def write_comparison(report: Row, records: Sequence[RunRecord], output: Path) -> None:
    """Writes the page, its numbers, its chart and the merged TensorBoard folder.

    Raises:
        OSError: something cannot be written.
    """
    names = short_scales(records)
    overlay(output / "curves.png", _panels(records, names), len(records))

    def tag(record: RunRecord, metric: str) -> str:
        """Scores on different scales get tags of their own."""
        is_score = metric == "eval/reward" or (metric.startswith("reward/") and metric != "reward/abstained")
        return f"{metric} ({names[scale(record)]})" if is_score and len(names) > 1 else metric

    scores = list(dict.fromkeys(tag(record, "reward/mean") for record in records))
    health = ("policy/entropy", "policy/kl", "policy/distinct", "policy/length")
    layout = {
        "held-out accuracy": {"greedy": ["eval/greedy"], "sampled": ["eval/pass@1"]},
        "reward": {name: [name] for name in scores},
        "reward against accuracy": {
            "own score and held-out accuracy": [*scores, "eval/greedy"],
            "AUC within a task": ["eval/auc_within"],
        },
        "health": {name: [name] for name in health},
    }
    from agents.studies.events import write_events  # loads torch, for which no refusal should wait

    write_events(output / "tensorboard", records, tag, layout)
    write_json(output / "compare.json", report)
    write_page(
        "comparison.html.jinja", output / "index.html", report=report, answer=answer(report), notes=NOTES
    )


def _panels(records: Sequence[RunRecord], names: Mapping[str, str]) -> list[Panel]:
    """A panel for each metric that was logged; scores on different scales get a panel each."""
    panels = []
    for metric, title in PANELS:
        if metric.startswith("reward/") and len(names) > 1:
            for whole, short in names.items():
                panels.append(_panel(f"{title}: {short}", metric, records, whole))
        else:
            panels.append(_panel(title, metric, records))
    return [panel for panel in panels if panel.lines]


def _panel(title: str, metric: str, records: Sequence[RunRecord], of_scale: str | None = None) -> Panel:
    """The curves of all runs, or of those of one scale; a run looks the same in every panel."""
    lines = []
    for place, record in enumerate(records):
        points = [{"step": step, "mean": value} for step, value in record.curve(metric)]
        if points and of_scale in (None, scale(record)):
            lines.append(Line(record.name, points, *look(place)))
    return Panel(title, lines)


# ---- sentences, and the terminal ----


def answer(report: Row) -> list[str]:
    """What the comparison says: a sentence for each run, and one for each that over-optimises its reward."""
    diverged = [_over_optimised(run) for run in report["runs"] if run["diverged"] is not None]
    lines = [_against_first(row) for row in report["comparisons"]]
    if lines:
        return lines + diverged
    run = report["runs"][0]
    if run["gain"]["value"] is None:
        return [f"{run['name']}: nothing was executed."]
    return [f"{run['name']} {_said(run['gain']['verdict'])} its start.", *diverged]


def _over_optimised(run: Row) -> str:
    seen = f"after {run['diverged']:,} candidates"
    return (
        f"{run['name']} over-optimises its reward: {seen} its own score rises while held-out accuracy falls."
    )


def _against_first(row: Row) -> str:
    found = row["greedy"]
    if found["value"] is None:
        return f"{row['second']} and {row['first']} have no held-out task that was executed for both."
    difference = f"{signed(found['value'])} {interval(found, True)}".strip()
    sentence = f"{row['second']} {_said(found['verdict'])} {row['first']}: held-out accuracy {difference}"
    if found["gained"] is not None:
        sentence += f"; {found['gained']} tasks gained, {found['lost']} lost"
    return f"{sentence}."


def _said(verdict: str) -> str:
    if verdict in ("better", "worse"):
        return f"is {verdict} than"
    return "shows no difference to"


def show(report: Row) -> None:
    """Prints the comparison."""
    header = [
        "run",
        "reward",
        "learnt from",
        "state",
        "greedy",
        "gain",
        "pass@1",
        "alarms",
        "candidates",
        "seconds",
    ]
    rows = []
    for run in report["runs"]:
        cells = [
            run["name"],
            f"{run['reward']} (labelled)" if run["labelled"] else run["reward"],
            run["learnt_from"],
            run["state"],
            " -> ".join(map(number, run["greedy"])),
            signed(run["gain"]["value"]),
            " -> ".join(map(number, run["pass@1"])),
            ", ".join(run["alarms"]) or "–",
            str(run["candidates"]),
            f"{run['seconds']:.0f}",
        ]
        rows.append(cells)
    show_table("held-out accuracy, start -> end", header, rows)
    if len(report["scales"]) > 1:
        say("the rewards are on different scales, so their scores are drawn apart")
    for line in answer(report):
        say(line)
