"""Runs of any trainers beside each other: their curves, their held-out truth task by task, and one TensorBoard folder for all.

    python -m agents.compare runs/rejection_sft/A runs/ppo/B
    python -m agents.compare runs/rejection_sft/*-s0-* --output runs/compare/rewards --json

A run may still be at work: it is only read. Writes index.html (one page, everything inside), compare.json, curves.png, and tensorboard/,
in which the runs' curves lie over each other.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from agents.cli.command import run_command
from envs.types import InputError

if TYPE_CHECKING:
    from agents.studies.runs import HeldOutTask, RunRecord

OUTPUT = "runs/compare"
PANELS = (
    ("eval/greedy", "held-out truth, greedy"),
    ("eval/pass@1", "held-out truth, sampled (pass@1)"),
    ("reward/mean", "own score"),
    ("eval/auc_within", "AUC of the reward within a task"),
    ("policy/entropy", "entropy, nats a token"),
    ("policy/kl", "KL to the base, nats a token"),
    ("policy/distinct", "share of different commands"),
    ("policy/length", "length, tokens"),
)
NOTES = (
    "Intervals are 95 % bootstrap intervals over held-out tasks, paired where two evaluations are compared. They do not cover training "
    "seeds: one run that is better says nothing of the next. For that there is python -m agents.study.",
    '"Better" and "worse" are said only where the interval leaves 0 out and McNemar\'s exact test does not contradict it.',
    "Truth before the first cycle and after the last is of all held-out tasks; the curves are of the subset that is evaluated after every "
    "cycle. A run that has no end yet is compared on that subset.",
    "The x-axis is the number of candidates to learn from, the same for every trainer.",
)


@dataclass(frozen=True)
class Config:
    """Compares runs, finished or still running: curves, held-out truth task by task, one TensorBoard folder.

    Refused, with the reason: runs on different domains or with different evaluations (tasks, samples, temperature, longest command).
    Scores of different rewards are on different scales and drawn apart, or refused with --strict; the truth of such runs is comparable.
    """

    runs: Positional[tuple[str, ...]] = ()
    """Folders of runs; the first is what the others are compared with."""
    output: str | None = None
    """Folder of the comparison. By default runs/compare/<names of the runs>."""
    strict: bool = False
    """Refuse runs of different rewards as well, in place of drawing their scores apart."""
    json: bool = False
    """Print compare.json and nothing else."""

    def check(self) -> None:
        """Raises InputError where no run is given, or one twice."""
        if not self.runs:
            raise InputError("no run is given: python -m agents.compare runs/rejection_sft/A runs/ppo/B")
        places = [Path(run).resolve() for run in self.runs]
        if len(set(places)) < len(places):
            twice = next(run for run, place in zip(self.runs, places, strict=True) if places.count(place) > 1)
            raise InputError(f"{twice}: is given twice: leave one out")


def main(config: Config) -> int:
    """Reads the runs, refuses those that cannot be compared, writes the comparison and prints it in short."""
    records = read_runs(config.runs)
    check_comparable(records, config.strict)
    report = make_report(records)
    names = "--".join(re.sub(r"[^\w.-]+", "-", record.name) for record in records)[:100].strip("-.")
    output = Path(OUTPUT) / names if config.output in (None, OUTPUT) else Path(str(config.output))
    if (output / "config.yaml").exists():
        raise InputError(f"--output {output}: is the folder of a run: choose another folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
        write(report, records, output)
    except OSError as error:
        raise InputError(
            f"--output {output}: cannot be written ({error.strerror}): choose another folder"
        ) from None
    if config.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
        return 0
    show(report)
    print(f"{output}/index.html; curves: tensorboard --logdir {output / 'tensorboard'}")
    return 0


def read_runs(folders: Sequence[str]) -> list[RunRecord]:
    """The runs, under names that tell them apart.

    Raises:
        InputError: one is not there, damaged, or has not finished a cycle.
    """
    from agents.studies.runs import read_run

    records = [read_run(Path(folder)) for folder in folders]
    for record in records:
        if not record.cycles:
            raise InputError(f"{record.folder}: has not finished a cycle yet: wait for it, or leave it out")
    if len({record.name for record in records}) == len(records):
        return records
    places = [record.folder.resolve() for record in records]
    above = os.path.commonpath(places)
    return [
        replace(record, name=str(place.relative_to(above)))
        for record, place in zip(records, places, strict=True)
    ]


def check_comparable(records: Sequence[RunRecord], strict: bool) -> None:
    """Raises InputError, with the reason, where the runs' truth, or with `strict` their scores, are not the same measure."""
    from agents.studies.runs import SAME_EVALUATION, SAME_SCALE, difference_of, read_truth

    first = records[0]
    tasks = {task.task_id: task.text for task in read_truth(first, "start")}
    for other in records[1:]:
        pair = f"{first.name} and {other.name} cannot be compared"
        both = [first.settings, other.settings]
        if why := difference_of(both, SAME_EVALUATION):
            what = "domains" if why.startswith("domain ") else "evaluations"
            raise InputError(f"{pair}: their {what} differ, {why}: leave one out")
        if {task.task_id: task.text for task in read_truth(other, "start")} != tasks:
            raise InputError(
                f"{pair}: their held-out tasks are not the same, as if a domain's file had changed between them: leave one out"
            )
        if strict and (why := difference_of(both, SAME_SCALE)):
            raise InputError(
                f"{pair}: their rewards are on different scales, {why}: leave one out, or leave out --strict"
            )


# ---- the report ----


def make_report(records: Sequence[RunRecord]) -> dict[str, Any]:
    """Everything as plain values: what compare.json holds."""
    from agents.studies.runs import SAME_EVALUATION, read_truth

    ends = [read_truth(record, "end") for record in records]
    return {
        "evaluation": {key: records[0].settings.get(key) for key in SAME_EVALUATION},
        "scales": list(short_scales(records).values()),
        "runs": [
            describe(record, read_truth(record, "start"), end)
            for record, end in zip(records, ends, strict=True)
        ],
        "comparisons": [
            {
                "first": records[0].name,
                "second": record.name,
                "greedy": paired(ends[0], end, "greedy"),
                "pass@1": paired(ends[0], end, "pass_at_1"),
            }
            for record, end in zip(records[1:], ends[1:], strict=True)
        ],
        "differing": _differing(records),
    }


def describe(record: RunRecord, start: Sequence[HeldOutTask], end: Sequence[HeldOutTask]) -> dict[str, Any]:
    """One run: what it is, how far it is, and its truth before and after."""
    kept = record.results.get("kept")
    return {
        "name": record.name,
        "folder": str(record.folder),
        "trainer": record.trainer,
        "reward": str(record.settings.get("reward")),
        "labelled": record.labelled,
        "state": "finished"
        if record.finished
        else f"cycle {record.cycles} of {record.settings.get('cycles')}",
        "kept": kept if record.settings.get("keep") == "best" else None,
        **{
            name: [record.whole("start", name), record.whole("end", name)]
            for name in ("greedy", "pass@1", "auc_within")
        },
        "gain": paired(start, end, "greedy"),
        "score_change": record.score_change,
        "candidates": record.candidates,
        "seconds": record.seconds,
        "alarms": record.alarms,
    }


def paired(first: Sequence[HeldOutTask], second: Sequence[HeldOutTask], metric: str) -> dict[str, Any]:
    """Second less first on the tasks that both have, with its interval over tasks and McNemar's test."""
    import numpy as np

    from agents.evaluation.paired import difference

    known = {task.task_id: task for task in first}
    pairs = [
        (getattr(known[task.task_id], metric), getattr(task, metric))
        for task in second
        if task.task_id in known
    ]
    before, after = (
        np.array([math.nan if pair[side] is None else pair[side] for pair in pairs], dtype=float)
        for side in (0, 1)
    )
    found = difference(before, after)
    return {**asdict(found), "verdict": found.verdict}


def scale(record: RunRecord) -> str:
    """The scale of a run's own score, in words: scores of one scale alone are comparable."""
    from agents.studies.runs import SAME_SCALE

    return ", ".join(f"{key} {record.settings.get(key)}" for key in SAME_SCALE)


def short_scales(records: Sequence[RunRecord]) -> dict[str, str]:
    """Scale -> how it is called in charts and tags: the reward's name where that tells them apart."""
    rewards = {scale(record): str(record.settings.get("reward")) for record in records}
    return {
        text: reward if list(rewards.values()).count(reward) == 1 else text
        for text, reward in rewards.items()
    }


def _differing(records: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs."""
    keys = dict.fromkeys(key for record in records for key in record.settings)
    found = {
        key: [record.settings.get(key) for record in records]
        for key in keys
        if key not in ("name", "output", "config", "resume")
    }
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


# ---- files ----


def write(report: Mapping[str, Any], records: Sequence[RunRecord], output: Path) -> None:
    """Writes the page, its numbers, its chart and the merged TensorBoard folder."""
    from agents.studies.charts import overlay
    from agents.studies.events import write_events
    from agents.studies.html import write_page

    names = short_scales(records)
    panels = []
    for metric, title in PANELS:
        # Scores on different scales get a panel each.
        parts = names.items() if metric.startswith("reward/") and len(names) > 1 else [("", "")]
        for whole, short in parts:
            lines = {record.name: record.curve(metric) for record in records if whole in ("", scale(record))}
            if any(lines.values()):
                panels.append(
                    (
                        f"{title}: {short}" if short else title,
                        {name: points for name, points in lines.items() if points},
                    )
                )
    overlay(output / "curves.png", panels, [record.name for record in records])

    def tag(record: RunRecord, metric: str) -> str:
        scaled = metric == "eval/reward" or (metric.startswith("reward/") and metric != "reward/abstained")
        return f"{metric} ({names[scale(record)]})" if scaled and len(names) > 1 else metric

    scores = list(dict.fromkeys(tag(record, "reward/mean") for record in records))
    layout = {
        "truth": {"held-out truth, greedy": ["eval/greedy"], "held-out truth, sampled": ["eval/pass@1"]},
        "reward": {name: [name] for name in scores},
        "reward against truth": {
            "own score and truth": [*scores, "eval/greedy"],
            "AUC within a task": ["eval/auc_within"],
        },
        "health": {
            name: [name] for name in ("policy/entropy", "policy/kl", "policy/distinct", "policy/length")
        },
    }
    write_events(output / "tensorboard", records, tag, layout)
    (output / "compare.json").write_text(
        json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    write_page(
        "compare.html.jinja", output / "index.html", {}, report=report, answer=answer(report), notes=NOTES
    )


def answer(report: Mapping[str, Any]) -> list[str]:
    """What the comparison says, a sentence a run."""
    lines = []
    for row in report["comparisons"]:
        found = row["greedy"]
        if found["value"] is None:
            lines.append(
                f"{row['second']} and {row['first']} have no held-out task that was executed for both."
            )
            continue
        said = {"better": "is better than", "worse": "is worse than"}.get(
            found["verdict"], "shows no difference to"
        )
        ends = f" [{found['low']:+.3f}, {found['high']:+.3f}]" if found["low"] is not None else ""
        counts = (
            f"; {found['gained']} tasks gained, {found['lost']} lost" if found["gained"] is not None else ""
        )
        lines.append(
            f"{row['second']} {said} {row['first']}: greedy truth {found['value']:+.3f}{ends}{counts}."
        )
    if not lines:
        run = report["runs"][0]
        said = {"better": "is better than its start", "worse": "is worse than its start"}.get(
            run["gain"]["verdict"], "shows no difference to its start"
        )
        lines = [
            f"{run['name']} {said}."
            if run["gain"]["value"] is not None
            else f"{run['name']}: nothing was executed."
        ]
    return lines


def show(report: Mapping[str, Any]) -> None:
    """Prints the comparison in short."""
    from agents.cli.display import number, show_table

    header = ("run", "reward", "state", "greedy", "gain", "pass@1", "alarms", "candidates", "seconds")
    rows = []
    for run in report["runs"]:
        greedy, sampled = (" -> ".join(map(number, run[key])) for key in ("greedy", "pass@1"))
        gain = "-" if run["gain"]["value"] is None else f"{run['gain']['value']:+.3f}"
        reward = f"{run['reward']} (labelled)" if run["labelled"] else run["reward"]
        rows.append(
            (
                run["name"],
                reward,
                run["state"],
                greedy,
                gain,
                sampled,
                ", ".join(run["alarms"]) or "-",
                str(run["candidates"]),
                f"{run['seconds']:.0f}",
            )
        )
    show_table("held-out truth, start -> end", header, rows)
    if len(report["scales"]) > 1:
        print("the rewards are on different scales, so that their scores are drawn apart")
    for line in answer(report):
        print(line)


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
