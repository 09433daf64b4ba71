"""The runs of a study -> its numbers, as plain values: what study.json holds.

Intervals are over training seeds (Student's t, 95 %), not over tasks: the held-out tasks are the same for
every run. "Better" and "worse" are said only where the interval excludes 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from agents.evaluation.bootstrap import ROUNDS, Array, interval, resamples
from agents.evaluation.metrics import mean
from agents.studies.plan import Arm, Plan
from agents.studies.runs import COUNTERS, RunRecord, read_truth

RISE = 0.10  # of held-out accuracy: how many candidates that takes
HEALTH = ("distinct", "entropy", "length")  # metrics policy/...
NOTHING: dict[str, Any] = {"value": None, "low": None, "high": None, "seeds": 0}
Row = Mapping[str, Any]


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
    rows: dict[str, dict[int, Row]] = {}
    for name in plan.arms:
        rows[name] = {seed: of_run(record) for seed, record in runs.get(name, {}).items()}
    arms = {}
    comparisons = finished = wanted = 0
    seconds, failures = [], []
    for name, arm in plan.arms.items():
        records = list(runs.get(name, {}).values())
        reasons = failed.get(name, {})
        curve = curve_of(records, "eval/greedy")
        arms[name] = {
            **of_arm(arm, rows, reasons),
            "transfer": transfer_of(transfer.get(name, {})),
            "intents": intents_of(records),
            "curve": curve,
            "candidates_to_rise": candidates_to(RISE, curve),
            "collapse_step": collapse_step(curve),
            "score_curve": curve_of(records, "reward/mean"),
        }
        comparisons += arms[name]["against_reference"]["value"] is not None
        wanted += len(arm.seeds)
        finished += len(records)
        seconds += [record.seconds for record in records]
        failures += [{"arm": name, "seed": seed, "why": why} for seed, why in reasons.items()]
    return {
        "study": plan.name,
        "about": plan.about,
        "groups": {group: list(names) for group, names in plan.groups.items()},
        "comparisons": comparisons,
        "runs": wanted,
        "finished": finished,
        "failed": failures,
        "seconds": math.fsum(seconds),
        "arms": arms,
        "theory": theory_of(plan, theory, arms),
    }


# ---- runs and arms ----


def of_run(record: RunRecord) -> dict[str, Any]:
    """One run's numbers."""

    def ends(metric: str) -> list[float | None]:
        return [record.whole("start", metric), record.whole("end", metric)]

    start, end = ends("greedy")
    found = {
        "start": start,
        "end": end,
        "gain": _gain([start, end]),
        "pass@1_gain": _gain(ends("pass@1")),
        "auc": ends("auc"),
        "auc_within": ends("auc_within"),
        "score_change": record.score_change,
    }
    for name in HEALTH:
        found[name] = list(record.first_and_last(f"policy/{name}"))
    return {
        **found,
        "alarms": record.alarms,
        "diverged": record.diverged,
        "labels": record.labels,
        **record.usage,
        "candidates": record.candidates,
        "seconds": record.seconds,
        "learning": record.learning,
    }


def of_arm(arm: Arm, runs: Mapping[str, Mapping[int, Row]], failed: Mapping[int, str]) -> dict[str, Any]:
    """One arm over its seeds, compared by seed with its reference and its ceiling."""
    by_seed = runs[arm.name]
    rows = list(by_seed.values())
    # An arm is not compared with itself.
    reference_name = None if arm.reference == arm.name else arm.reference
    ceiling_name = None if arm.ceiling == arm.name else arm.ceiling
    own = gains(by_seed)
    reference = gains(runs[reference_name]) if reference_name else {}
    ceiling = gains(runs[ceiling_name]) if ceiling_name else {}
    found = {
        "trainer": arm.trainer,
        "settings": dict(arm.settings),
        "domain": arm.resolved["domain"],
        "labelled": arm.labelled,
        "reference": reference_name,
        "ceiling": ceiling_name,
        "wanted": list(arm.seeds),
        "failed": {str(seed): why for seed, why in failed.items()},
        "runs": {str(seed): dict(row) for seed, row in by_seed.items()},
        "start": mean(_column(rows, "start")),
        "end": mean(_column(rows, "end")),
        "gain": over_seeds(list(own.values())),
        "pass@1_gain": over_seeds(_column(rows, "pass@1_gain")),
        "against_reference": over_seeds([own[seed] - reference[seed] for seed in own if seed in reference]),
        "gap_closed": gap_closed(own, reference, ceiling),
        "score_change": over_seeds(_column(rows, "score_change")),
    }
    for name in ("auc", "auc_within", *HEALTH):
        found[name] = _first_and_last(rows, name)
    raised: list[str] = []
    for row in rows:
        raised += row["alarms"]
    found["alarms"] = {alarm: raised.count(alarm) for alarm in sorted(set(raised))}
    for name in ("diverged", "labels", "candidates", "seconds", "learning", *COUNTERS, "other_models"):
        found[name] = mean(_column(rows, name))
    return found


def gains(rows: Mapping[int, Row]) -> dict[int, float]:
    """Seed -> gain in held-out accuracy (greedy), of the runs that have one."""
    return {seed: row["gain"] for seed, row in rows.items() if row["gain"] is not None}


def _gain(ends: Sequence[float | None]) -> float | None:
    start, end = ends
    if start is None or end is None:
        return None
    return end - start


def _column(rows: Sequence[Row], name: str) -> list[float]:
    """One number of all runs that have it."""
    return [row[name] for row in rows if row[name] is not None]


def _first_and_last(rows: Sequence[Row], name: str) -> list[float | None]:
    """Means over the runs of a number at the start and at the end."""
    means = []
    for place in (0, 1):
        means.append(mean([row[name][place] for row in rows if row[name][place] is not None]))
    return means


# ---- over seeds ----


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean and 95 % t interval of one value per seed.

    Equal values get no interval: they only say that the measure is coarse.
    """
    if not values:
        return {**NOTHING, "verdict": "not measured"}
    low = high = None
    if len(values) > 1 and max(values) > min(values):
        low, high = t_interval(values)
    value = math.fsum(values) / len(values)
    return {"value": value, "low": low, "high": high, "seeds": len(values), "verdict": _verdict(low, high)}


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean of a few independent values.

    Raises:
        ValueError: fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"a t interval of {len(values)} values")
    centre, error = float(np.mean(values)), float(stats.sem(values))
    half = error * float(stats.t.ppf((1 + confidence) / 2, len(values) - 1))
    return centre - half, centre + half


def _verdict(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "not measured"
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    return "no difference shown"


def gap_closed(
    own: Mapping[int, float], reference: Mapping[int, float], ceiling: Mapping[int, float]
) -> dict[str, Any]:
    """(gain - reference) / (ceiling - reference), paired by seed, with Fieller's 95 % interval (1954).

    The ratio of two means that vary together. The interval holds all ratios r for which a t test does not
    reject that the mean of numerator - r x denominator is 0. Where the denominator itself may be 0, no
    bounded interval exists, and none is given.
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


def curve_of(records: Sequence[RunRecord], metric: str) -> list[dict[str, float]]:
    """The metric over candidates scored: mean, lowest and highest over the seeds, where every seed has it."""
    curves = [dict(record.curve(metric)) for record in records]
    if not curves:
        return []
    points = []
    for step in sorted(set.intersection(*map(set, curves))):
        values = [curve[step] for curve in curves]
        average = math.fsum(values) / len(values)
        points.append({"step": step, "mean": average, "low": min(values), "high": max(values)})
    return points


def candidates_to(rise: float, curve: Sequence[Mapping[str, float]]) -> int | None:
    """Candidates scored after which a mean curve is first `rise` above its start; None where it never is."""
    for point in curve:
        if point["mean"] >= curve[0]["mean"] + rise - 1e-9:
            return int(point["step"])
    return None


def collapse_step(curve: Sequence[Mapping[str, float]]) -> int | None:
    """Candidates scored after which a mean curve is below its start, to its end; None where it is not.

    After the Model Collapse Step of He et al. 2026, arXiv:2603.08660; here by held-out accuracy.
    """
    step = None
    for point in reversed(curve):
        if point["mean"] >= curve[0]["mean"] - 1e-9:
            return step
        step = int(point["step"])
    return step


# ---- intents, other domains, theory ----


def intents_of(records: Iterable[RunRecord]) -> dict[str, dict[str, float]]:
    """Intent -> gain in accuracy over its tasks and all seeds, and the number of before-after pairs."""
    changes: dict[str, list[float]] = {}
    for record in records:
        before = {task.task_id: task for task in read_truth(record, "start")}
        for task in read_truth(record, "end"):
            if task.task_id not in before:
                continue
            change = _gain([before[task.task_id].greedy, task.greedy])
            if change is not None:
                changes.setdefault(task.intent, []).append(change)
    found = {}
    for name, rows in sorted(changes.items()):
        found[name] = {"gain": math.fsum(rows) / len(rows), "pairs": len(rows)}
    return found


def transfer_of(reports: Mapping[int, Any]) -> dict[str, Any]:
    """Domain -> gain in accuracy there over the seeds, from reports that compare start and end of a run."""
    found: dict[str, list[float]] = {}
    for report in reports.values():
        for domain, row in report["comparisons"][0]["domains"].items():
            if row["greedy"]["value"] is not None:
                found.setdefault(domain, []).append(row["greedy"]["value"])
    return {domain: over_seeds(values) for domain, values in found.items()}


def theory_of(
    plan: Plan, reports: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Does a reward by inversion work where the inverse direction does? By intent, and over models.

    By intent: accuracy of reconstructing tasks from references against the AUC of the reward among the
    samples of one task, with Spearman's rank correlation and its 95 % bootstrap interval over intents. Over
    models: accuracy of the inverse against the gain of the arm.
    """
    found: dict[str, Any] = {}
    for name in plan.theory:
        if name not in reports:
            continue
        subject = reports[name]["subjects"][0]
        whole = subject["all"]
        intents = _measured_intents(subject["intents"])
        found[name] = {
            "model": subject["model"],
            "reward": reports[name]["settings"]["reward"],
            **{key: whole[key] for key in ("inverse", "auc", "auc_within", "greedy")},
            "gain": arms[name]["gain"],
            "against_reference": arms[name]["against_reference"],
            "intents": intents,
            "correlation": rank_correlation([(row["inverse"], row["auc"]) for row in intents]),
        }
    return found


def _measured_intents(intents: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The intents of which both the inverse direction and the reward were measured."""
    found = []
    for intent, row in intents.items():
        inverse, auc = row["inverse"], row["auc_within"]
        if inverse["value"] is None or auc["value"] is None:
            continue
        point = {"intent": intent, "inverse": inverse["value"], "auc": auc["value"]}
        found.append({**point, "greedy": row["greedy"]["value"], "tasks": auc["tasks"]})
    return found


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Spearman's rank correlation with its 95 % bootstrap interval; None where one side is constant."""
    data = np.array(pairs, dtype=float).reshape(-1, 2)
    value = _spearman(data)
    if math.isnan(value):
        return {"value": None, "low": None, "high": None, "pairs": len(data)}
    low, high = interval([_spearman(data[pick]) for pick in resamples(len(data), ROUNDS)])
    return {"value": value, "low": low, "high": high, "pairs": len(data)}


def _spearman(data: Array) -> float:
    ranks = stats.rankdata(data, axis=0)
    if len(data) < 3 or not np.ptp(ranks, axis=0).all():
        return math.nan
    return float(np.corrcoef(ranks.T)[0, 1])
