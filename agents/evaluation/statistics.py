"""Answers -> numbers with intervals: accuracy, how well the reward tells right from wrong, did a run fall.

Every interval is a percentile bootstrap over tasks (95 %), since the samples of one task are not independent.
Commands that could not be executed are left out of every rate and counted apart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.evaluation.answers import Answer
from agents.evaluation.bootstrap import ROUNDS, Array, interval, resamples
from agents.evaluation.metrics import auc, correctness, pass_at_k

BINS = 10
Measure = Callable[[Array, Array], "float | None"]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % bootstrap interval over `tasks` tasks; None where undefined or too few tasks."""

    value: float | None
    low: float | None = None
    high: float | None = None
    tasks: int = 0


@dataclass(frozen=True)
class Table:
    """Answers as arrays, one row per task; NaN where something is not known.

    Attributes:
        means_P: by name, values whose mean over tasks is the metric.
        right_P_G: 1 for a right sample, 0 for a wrong one.
        scores_P_G: scores of the samples that were executed.
    """

    means_P: Mapping[str, Array]
    right_P_G: Array
    scores_P_G: Array


def table(answers: Sequence[Answer], k: int) -> Table:
    """Lays the answers out; `k` is the K of pass@K."""
    width = max((len(answer.samples) for answer in answers), default=0)
    right = np.full((len(answers), width), np.nan)
    scores = np.full((len(answers), width), np.nan)
    names: tuple[str, ...] = (
        "greedy",
        "pass@1",
        f"pass@{k}",
        "reward",
        "reward_minus_truth",
        "best_of_k",
        "auc_within",
    )
    names += ("abstained", "invalid", "not_executed", "exact", "plain", "inverse")
    means = {name: np.full(len(answers), np.nan) for name in names}
    for row, answer in enumerate(answers):
        for column, sample in enumerate(answer.samples):
            if sample.verdict.status == "not_executed":
                continue
            right[row, column] = sample.verdict.correct
            if sample.score is not None and sample.score.value is not None:
                scores[row, column] = sample.score.value
        values = {**_of_commands(answer, k), **_of_scores(right[row], scores[row])}
        for name, value in values.items():
            if value is not None:
                means[name][row] = value
    return Table(means, right, scores)


def _of_commands(answer: Answer, k: int) -> dict[str, float | None]:
    """Metrics of one task that need no score, and how often the reward abstained."""
    inverse = answer.inverse
    found: dict[str, float | None] = {
        "greedy": correctness(answer.greedy.verdict.status),
        "exact": float(answer.greedy.exact),
        "plain": float(answer.greedy.plain),
        "inverse": None if inverse is None else float(inverse),
    }
    counts = Counter(judged.verdict.status for judged in answer.commands)
    executed = counts.total() - counts["not_executed"]
    found["not_executed"] = 1 - executed / counts.total()
    if executed:
        found["invalid"] = counts["invalid"] / executed

    samples = Counter(sample.verdict.status for sample in answer.samples)
    known = samples.total() - samples["not_executed"]
    for size in {1, k}:
        if known >= size:
            found[f"pass@{size}"] = pass_at_k(samples["correct"], known, size)

    scored = [sample.score.value for sample in answer.samples if sample.score is not None]
    if scored:
        found["abstained"] = scored.count(None) / len(scored)
    return found


def _of_scores(right_G: Array, scores_G: Array) -> dict[str, float | None]:
    """Metrics of one task over its samples that were both executed and scored."""
    both = ~np.isnan(right_G) & ~np.isnan(scores_G)
    right, scores = right_G[both], scores_G[both]
    if not len(scores):
        return {}
    return {
        "reward": float(scores.mean()),
        "reward_minus_truth": float(scores.mean() - right.mean()),
        "best_of_k": float(right[int(np.argmax(scores))]),
        "auc_within": auc(right.tolist(), scores.tolist()),
    }


def estimates(
    answers: Sequence[Answer], k: int, rounds: int = ROUNDS, curves: int | None = None
) -> dict[str, Estimate]:
    """Every metric of one model over these tasks.

    Args:
        rounds: bootstrap resamples; 0 leaves the intervals out.
        curves: resamples for `auc`, `calibration_error` and `risk_area`, which are no means over tasks; by
            default as many.
    """
    laid = table(answers, k)
    picks = resamples(len(answers), rounds)
    found = {name: mean_estimate(column, picks) for name, column in laid.means_P.items()}
    pooled_measures: dict[str, Measure] = {
        "auc": pooled_auc,
        "calibration_error": calibration_error,
        "risk_area": risk_area,
    }
    for name, measure in pooled_measures.items():
        found[name] = _pooled_estimate(measure, laid.right_P_G, laid.scores_P_G, picks[:curves])

    commands = []
    for answer in answers:
        commands += [sample.command for sample in answer.samples]
    distinct = len(set(commands)) / len(commands) if commands else None
    found["distinct"] = Estimate(distinct, tasks=len(answers))
    return found


def mean_estimate(column_P: Array, picks: NDArray[np.int64]) -> Estimate:
    """The mean over the tasks where it is known; a resample in which it is known nowhere is left out."""
    known = ~np.isnan(column_P)
    if not known.any():
        return Estimate(None)
    filled = np.where(known, column_P, 0.0)
    sizes = known[picks].sum(axis=1)
    with np.errstate(invalid="ignore"):
        low, high = interval(filled[picks].sum(axis=1) / sizes)
    return Estimate(float(column_P[known].mean()), low, high, int(known.sum()))


def _pooled_estimate(
    measure: Measure, right_P_G: Array, scores_P_G: Array, picks: NDArray[np.int64]
) -> Estimate:
    """A measure of all samples together, and its interval over resampled tasks."""
    value = measure(right_P_G, scores_P_G)
    known = int((~np.isnan(scores_P_G)).any(axis=1).sum())
    if value is None:
        return Estimate(None, tasks=known)
    resampled = []
    for pick in picks:
        other = measure(right_P_G[pick], scores_P_G[pick])
        if other is not None:
            resampled.append(other)
    low, high = interval(resampled)
    return Estimate(value, low, high, known)


def _pooled(right_P_G: Array, scores_P_G: Array) -> tuple[Array, Array]:
    both = ~np.isnan(right_P_G) & ~np.isnan(scores_P_G)
    return right_P_G[both], scores_P_G[both]


def pooled_auc(right_P_G: Array, scores_P_G: Array) -> float | None:
    """AUC over the samples of all tasks together."""
    right, scores = _pooled(right_P_G, scores_P_G)
    return auc(right, scores)


def bins(right_P_G: Array, scores_P_G: Array) -> list[tuple[float, float, int]]:
    """Calibration: samples in ten equal groups by score -> (mean score, share right, samples) of each."""
    right, scores = _pooled(right_P_G, scores_P_G)
    # Equal scores share their mean, so that no group depends on the order among them.
    _, equals = np.unique(scores, return_inverse=True)
    right = (np.bincount(equals, right) / np.bincount(equals))[equals]
    order = np.argsort(scores, kind="stable")
    found = []
    for group in np.array_split(order, min(BINS, max(1, len(order)))):
        if len(group):
            found.append((float(scores[group].mean()), float(right[group].mean()), len(group)))
    return found


def calibration_error(right_P_G: Array, scores_P_G: Array) -> float | None:
    """Expected calibration error (Naeini et al. 2015): mean |score - share right| over the groups."""
    groups = bins(right_P_G, scores_P_G)
    samples = sum(size for _, _, size in groups)
    if not samples:
        return None
    return math.fsum(abs(score - right) * size for score, right, size in groups) / samples


def risk_coverage(right_P_G: Array, scores_P_G: Array) -> list[tuple[float, float, float]]:
    """Acting only on tasks whose best-scored sample has a high score (Geifman & El-Yaniv 2017).

    Returns:
        (coverage: share of tasks acted on, risk: share of these that are wrong, the score needed to act),
        rising coverage; one point per distinct score, since equal scores cannot be told apart.
    """
    both = ~np.isnan(right_P_G) & ~np.isnan(scores_P_G)
    rows = both.any(axis=1)
    if not rows.any():
        return []
    filled = np.where(both, scores_P_G, -np.inf)[rows]
    best = filled.argmax(axis=1)
    scores = filled[np.arange(len(best)), best]
    wrong = 1 - right_P_G[rows][np.arange(len(best)), best]
    order = np.argsort(-scores, kind="stable")
    scores, errors = scores[order], np.cumsum(wrong[order])
    last_of_equals = np.append(scores[1:] != scores[:-1], True)
    points = []
    for place in np.flatnonzero(last_of_equals).tolist():
        acted = place + 1
        points.append((acted / len(scores), float(errors[place]) / acted, float(scores[place])))
    return points


def risk_area(right_P_G: Array, scores_P_G: Array) -> float | None:
    """Area under the risk-coverage curve: the mean risk over coverages.

    0 is never wrong; a score no better than chance gives the error rate.
    """
    points = risk_coverage(right_P_G, scores_P_G)
    if not points:
        return None
    parts, before = [], 0.0
    for coverage, risk, _ in points:
        parts.append((coverage - before) * risk)
        before = coverage
    return math.fsum(parts)


# ---- one model over its run ----


def fall_since_peak(
    history: Sequence[Sequence[float | None]], window: int
) -> tuple[float, float, int] | None:
    """Whether accuracy fell: mean of the last `window` evaluations minus the best earlier window.

    Args:
        history: one row per evaluation, one value per task, always the same tasks.
        window: evaluations over which is averaged; the earlier window does not overlap the last.

    Returns:
        (change, upper end of its 99 % paired-bootstrap interval, evaluations since the best window ended);
        None with too few evaluations. The interval holds for all earlier windows at once, since the best of
        many windows looks high by chance, and more so the longer the run. It is the change minus the 0.5 %
        quantile of the lowest deviation of any window's change (a max-type bootstrap).
    """
    if len(history) < 2 * window:
        return None
    values = np.array(history, dtype=float)  # None becomes NaN
    values = values[:, ~np.isnan(values).any(axis=0)]
    if values.shape[1] < 2:
        return None
    means = np.array([values[end - window : end].mean(axis=0) for end in range(window, len(values) + 1)])
    earlier = means[:-window]
    changes = means[-1] - earlier  # a row for each earlier window, a column for each task
    peak = int(np.argmax(earlier.mean(axis=1)))
    picks = resamples(changes.shape[1], ROUNDS)
    deviations = [change[picks].mean(axis=1) - change.mean() for change in changes]
    lowest = np.min(deviations, axis=0)
    change = float(changes[peak].mean())
    return change, change - float(np.quantile(lowest, 0.005)), len(means) - 1 - peak
