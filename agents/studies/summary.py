"""The runs of a study -> its numbers, as plain values: what study.json holds.

Intervals are over training seeds (Student's t, 95 %), not over tasks: the held-out tasks are the same for every run. "Better" and
"worse" are said only where the interval leaves 0 out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from agents.evaluation.metrics import mean, t_interval
from agents.studies.plan import Arm, Plan
from agents.studies.runs import HeldOutTask, RunRecord, read_truth

RISE = 0.10  # of greedy truth: how many candidates that takes
HEALTH = ("policy/distinct", "policy/entropy", "policy/length")
NOTHING: dict[str, Any] = {"value": None, "low": None, "high": None, "seeds": 0}


def summarize(
    plan: Plan,
    runs: Mapping[str, Mapping[int, RunRecord]],
    failed: Mapping[str, Mapping[int, str]],
    transfer: Mapping[str, Mapping[int, Any]],
    theory: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything a study found.

    Args:
        runs: arm -> seed -> finished run.
        failed: arm -> seed -> why it failed.
        transfer: arm -> seed -> report of `agents.evaluate` on other domains.
        theory: arm -> report of `agents.evaluate` on its model before training.
    """
    seeds = {
        name: {seed: of_run(record) for seed, record in runs.get(name, {}).items()} for name in plan.arms
    }
    arms = {name: of_arm(arm, seeds, failed.get(name, {})) for name, arm in plan.arms.items()}
    tested = [
        row["against_reference"]["verdict"]
        for row in arms.values()
        if row["against_reference"]["value"] is not None
    ]
    for name in plan.arms:
        arms[name]["transfer"] = transfer_of(transfer.get(name, {}))
        arms[name]["intents"] = intents_of(runs.get(name, {}).values())
        arms[name]["curve"] = curve_of(runs.get(name, {}).values(), "eval/greedy")
        arms[name]["candidates_to_rise"] = candidates_to(RISE, arms[name]["curve"])
        arms[name]["score_curve"] = curve_of(runs.get(name, {}).values(), "reward/mean")
    return {
        "study": plan.name,
        "about": plan.about,
        "groups": {group: list(names) for group, names in plan.groups.items()},
        "comparisons": len(tested),
        "runs": sum(len(arm.seeds) for arm in plan.arms.values()),
        "finished": sum(map(len, runs.values())),
        "failed": [
            {"arm": arm, "seed": seed, "why": why}
            for arm, rows in failed.items()
            for seed, why in rows.items()
        ],
        "seconds": math.fsum(record.seconds for rows in runs.values() for record in rows.values()),
        "arms": arms,
        "theory": theory_of(plan, theory, arms),
    }


def of_run(record: RunRecord) -> dict[str, Any]:
    """One run's numbers."""
    start, end = (record.whole(when, "greedy") for when in ("start", "end"))
    first, last = (record.whole(when, "pass@1") for when in ("start", "end"))
    return {
        "start": start,
        "end": end,
        "gain": _less(end, start),
        "pass@1_gain": _less(last, first),
        "auc": [record.whole("start", "auc"), record.whole("end", "auc")],
        "auc_within": [record.whole("start", "auc_within"), record.whole("end", "auc_within")],
        "score_change": record.score_change,
        **{name.removeprefix("policy/"): list(record.first_and_last(name)) for name in HEALTH},
        "alarms": record.alarms,
        "candidates": record.candidates,
        "seconds": record.seconds,
        "learning": record.learning,
    }


def of_arm(
    arm: Arm, runs: Mapping[str, Mapping[int, Mapping[str, Any]]], failed: Mapping[int, str]
) -> dict[str, Any]:
    """One arm over its seeds, compared by seed with its reference and its ceiling."""
    rows = runs[arm.name]
    reference, ceiling = (gains(runs[name]) if name else {} for name in (arm.reference, arm.ceiling))
    own = gains(rows)
    compared = own if arm.name != arm.reference else {}
    raised = [alarm for row in rows.values() for alarm in row["alarms"]]
    return {
        "trainer": arm.trainer,
        "settings": dict(arm.settings),
        "domain": arm.resolved["domain"],
        "labelled": arm.labelled,
        "reference": arm.reference if arm.name != arm.reference else None,
        "ceiling": arm.ceiling if arm.name != arm.ceiling else None,
        "wanted": list(arm.seeds),
        "failed": {str(seed): why for seed, why in failed.items()},
        "runs": {str(seed): dict(row) for seed, row in rows.items()},
        "start": mean(_known(row["start"] for row in rows.values())),
        "end": mean(_known(row["end"] for row in rows.values())),
        "gain": over_seeds(own.values()),
        "pass@1_gain": over_seeds(_known(row["pass@1_gain"] for row in rows.values())),
        "against_reference": over_seeds(
            own[seed] - reference[seed] for seed in compared if seed in reference
        ),
        "gap_closed": gap_closed(compared, reference, ceiling) if arm.name != arm.ceiling else dict(NOTHING),
        "score_change": over_seeds(_known(row["score_change"] for row in rows.values())),
        "auc": _two(rows, "auc"),
        "auc_within": _two(rows, "auc_within"),
        **{name.removeprefix("policy/"): _two(rows, name.removeprefix("policy/")) for name in HEALTH},
        "alarms": {alarm: raised.count(alarm) for alarm in sorted(set(raised))},
        "candidates": mean([row["candidates"] for row in rows.values()]),
        "seconds": mean([row["seconds"] for row in rows.values()]),
        "learning": mean([row["learning"] for row in rows.values()]),
    }


def gains(rows: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    """Seed -> gain in greedy held-out truth, of the runs that have one."""
    return {seed: row["gain"] for seed, row in rows.items() if row["gain"] is not None}


def over_seeds(values: Iterable[float]) -> dict[str, Any]:
    """Mean and 95 % t interval of one value a seed. Equal values have none: they only say that the measure is coarse."""
    data = list(values)
    if not data:
        return {**NOTHING, "verdict": "not measured"}
    low, high = t_interval(data) if len(data) > 1 and max(data) > min(data) else (None, None)
    verdict = (
        "not measured"
        if low is None or high is None
        else "better"
        if low > 0
        else "worse"
        if high < 0
        else "no difference shown"
    )
    return {
        "value": math.fsum(data) / len(data),
        "low": low,
        "high": high,
        "seeds": len(data),
        "verdict": verdict,
    }


def gap_closed(
    own: Mapping[int, float], reference: Mapping[int, float], ceiling: Mapping[int, float]
) -> dict[str, Any]:
    """(gain - reference) / (ceiling - reference), paired by seed, with Fieller's 95 % interval (Fieller 1954).

    The ratio of two means that vary together: all ratios r for which a t test does not reject that the mean of numerator - r x
    denominator is 0. Where the denominator itself may be 0 no bounded interval exists, and none is given.
    """
    seeds = [seed for seed in own if seed in reference and seed in ceiling]
    above = np.array([own[seed] - reference[seed] for seed in seeds])
    below = np.array([ceiling[seed] - reference[seed] for seed in seeds])
    if not seeds or below.mean() <= 0:
        return dict(NOTHING)
    found = {"value": float(above.mean() / below.mean()), "low": None, "high": None, "seeds": len(seeds)}
    if len(seeds) < 2:
        return found
    squared_t = float(stats.t.ppf(0.975, len(seeds) - 1)) ** 2 / len(seeds)
    var_above, covariance, var_below = np.cov(above, below).ravel()[[0, 1, 3]]
    a = below.mean() ** 2 - squared_t * var_below
    b = above.mean() * below.mean() - squared_t * covariance
    c = above.mean() ** 2 - squared_t * var_above
    if a <= 0 or b * b - a * c < 0 or var_below == 0 == var_above:
        return found
    root = math.sqrt(b * b - a * c)
    return {**found, "low": float((b - root) / a), "high": float((b + root) / a)}


def curve_of(records: Iterable[RunRecord], metric: str) -> list[dict[str, float]]:
    """The metric over candidates scored: mean, lowest and highest over the seeds; points that every seed has."""
    curves = [dict(record.curve(metric)) for record in records]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    points = [(step, [curve[step] for curve in curves]) for step in steps]
    return [
        {"step": step, "mean": math.fsum(row) / len(row), "low": min(row), "high": max(row)}
        for step, row in points
    ]


def candidates_to(rise: float, curve: Sequence[Mapping[str, float]]) -> int | None:
    """Candidates to learn from after which a mean curve is first so far above its start; None where it never is."""
    return next(
        (int(point["step"]) for point in curve if point["mean"] >= curve[0]["mean"] + rise - 1e-9), None
    )


def intents_of(records: Iterable[RunRecord]) -> dict[str, dict[str, float]]:
    """Intent -> gain in greedy truth over its held-out tasks and all seeds, and how many pairs of before and after that is."""
    changes: dict[str, list[float]] = {}
    for record in records:
        before = {task.task_id: task for task in read_truth(record, "start")}
        for task in read_truth(record, "end"):
            change = _less(task.greedy, before[task.task_id].greedy) if task.task_id in before else None
            if change is not None:
                changes.setdefault(task.intent, []).append(change)
    return {
        name: {"gain": math.fsum(rows) / len(rows), "pairs": len(rows)}
        for name, rows in sorted(changes.items())
    }


def transfer_of(reports: Mapping[int, Any]) -> dict[str, Any]:
    """Domain -> gain in greedy truth there, over the seeds, from reports that compare a run's start with its end."""
    found: dict[str, list[float]] = {}
    for report in reports.values():
        for domain, row in report["comparisons"][0]["domains"].items():
            if row["greedy"]["value"] is not None:
                found.setdefault(domain, []).append(row["greedy"]["value"])
    return {domain: over_seeds(values) for domain, values in found.items()}


def theory_of(
    plan: Plan, reports: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Does a reward by inversion work where the inverse direction does? By intent within a model, and over models.

    By intent: accuracy of reading references back against the AUC of the reward among the samples of one task, with Spearman's rank
    correlation and its 95 % bootstrap interval over intents. Over models: accuracy of the inverse against the gain of the arm.
    """
    found: dict[str, Any] = {}
    for name in plan.theory:
        if name not in reports:
            continue
        subject = reports[name]["subjects"][0]
        intents = [
            {
                "intent": intent,
                "inverse": row["inverse"]["value"],
                "auc": row["auc_within"]["value"],
                "greedy": row["greedy"]["value"],
                "tasks": row["auc_within"]["tasks"],
            }
            for intent, row in subject["intents"].items()
            if row["inverse"]["value"] is not None and row["auc_within"]["value"] is not None
        ]
        found[name] = {
            "model": subject["model"],
            "reward": reports[name]["settings"]["reward"],
            "inverse": subject["all"]["inverse"],
            "auc": subject["all"]["auc"],
            "auc_within": subject["all"]["auc_within"],
            "greedy": subject["all"]["greedy"],
            "gain": arms[name]["gain"],
            "against_reference": arms[name]["against_reference"],
            "intents": intents,
            "correlation": rank_correlation([(row["inverse"], row["auc"]) for row in intents]),
        }
    return found


def rank_correlation(pairs: Sequence[tuple[float, float]], rounds: int = 2000) -> dict[str, Any]:
    """Spearman's rank correlation with its 95 % percentile-bootstrap interval over the pairs; None where one side does not vary."""
    data = np.array(pairs, dtype=float).reshape(-1, 2)
    value = _spearman(data)
    if math.isnan(value):
        return {"value": None, "low": None, "high": None, "pairs": len(data)}
    rng = np.random.default_rng(0)
    resampled = np.array([_spearman(data[rng.integers(len(data), size=len(data))]) for _ in range(rounds)])
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return {"value": value, "low": float(low), "high": float(high), "pairs": len(data)}


def _spearman(data: Any) -> float:
    ranks = stats.rankdata(data, axis=0)
    if len(data) < 3 or not np.ptp(ranks, axis=0).all():
        return math.nan
    return float(np.corrcoef(ranks.T)[0, 1])


def paired_tasks(
    first: Sequence[HeldOutTask], second: Sequence[HeldOutTask]
) -> list[tuple[HeldOutTask, HeldOutTask]]:
    """The tasks that both have."""
    known = {task.task_id: task for task in first}
    return [(known[task.task_id], task) for task in second if task.task_id in known]


def _two(rows: Mapping[int, Mapping[str, Any]], name: str) -> list[float | None]:
    return [mean(_known(row[name][place] for row in rows.values())) for place in (0, 1)]


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _less(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other
