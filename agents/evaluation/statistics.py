"""Answers -> numbers with intervals: truth, how well the reward finds it, and whether one model is better than another.

Every interval is a percentile bootstrap over tasks (95 %), since the samples of one task are not independent. Items that could not be
verified are left out of every rate and counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from agents.evaluation.heldout import Answer
from agents.evaluation.metrics import auc, pass_at_k
from agents.evaluation.paired import ROUNDS, Array, interval, resamples
from agents.evaluation.paired import Difference as Difference  # the whole of statistics is found here
from agents.evaluation.paired import difference as difference
from agents.evaluation.paired import mcnemar as mcnemar

BINS = 10


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % bootstrap interval over `tasks` tasks; None where it is not defined or too few tasks are there."""

    value: float | None
    low: float | None = None
    high: float | None = None
    tasks: int = 0


@dataclass(frozen=True)
class Table:
    """Answers as arrays, a row a task; NaN where something is not known.

    Attributes:
        means_P: by name, values whose mean over tasks is the metric.
        truths_P_G, scores_P_G: the samples that were verified and scored.
    """

    means_P: Mapping[str, Array]
    truths_P_G: Array
    scores_P_G: Array


def table(answers: Sequence[Answer], k: int) -> Table:
    """Lays the answers out; `k` is the K of pass@K."""
    width = max((len(answer.samples) for answer in answers), default=0)
    truths = np.full((len(answers), width), np.nan)
    scores = np.full((len(answers), width), np.nan)
    names = [
        "greedy",
        "pass@1",
        f"pass@{k}",
        "reward",
        "reward_minus_truth",
        "best_of_k",
        "auc_within",
        "abstained",
        "invalid",
        "not_executed",
    ]
    means = {name: np.full(len(answers), np.nan) for name in (*names, "exact", "inverse")}

    def put(name: str, row: int, value: float | None) -> None:
        if value is not None:
            means[name][row] = value

    for row, answer in enumerate(answers):
        for column, sample in enumerate(answer.samples):
            if sample.verdict.status != "not_executed":
                truths[row, column] = sample.verdict.correct
                if sample.score is not None and sample.score.value is not None:
                    scores[row, column] = sample.score.value
        known = truths[row][~np.isnan(truths[row])]
        both = ~np.isnan(truths[row]) & ~np.isnan(scores[row])
        right, given = truths[row][both], scores[row][both]
        status = answer.greedy.verdict.status
        executed = [judged for judged in answer.commands if judged.verdict.status != "not_executed"]
        put("greedy", row, None if status == "not_executed" else float(status == "correct"))
        put("exact", row, float(answer.greedy.exact))
        put("inverse", row, None if answer.inverse is None else float(answer.inverse))
        put("not_executed", row, 1 - len(executed) / len(answer.commands))
        if executed:
            put(
                "invalid", row, sum(judged.verdict.status == "invalid" for judged in executed) / len(executed)
            )
        for size in {1, k} if len(known) else ():
            if len(known) >= size:
                put(f"pass@{size}", row, pass_at_k(int(known.sum()), len(known), size))
        scored = [sample for sample in answer.samples if sample.score is not None]
        if scored:
            put(
                "abstained",
                row,
                sum(sample.score.value is None for sample in scored if sample.score) / len(scored),
            )
        if len(given):
            put("reward", row, float(given.mean()))
            put("reward_minus_truth", row, float(given.mean() - right.mean()))
            put("best_of_k", row, float(right[int(np.argmax(given))]))
            put("auc_within", row, auc([bool(value) for value in right], given.tolist()))
    return Table(means, truths, scores)


def estimates(
    answers: Sequence[Answer], k: int, rounds: int = ROUNDS, curves: int | None = None
) -> dict[str, Estimate]:
    """Every metric of one model over these tasks.

    Args:
        rounds: bootstrap resamples; 0 leaves the intervals out.
        curves: resamples for what is not a mean over tasks (`auc`, `calibration_error`, `risk_area`), by default as many.
    """
    laid = table(answers, k)
    picks = resamples(len(answers), rounds)
    found = {name: mean_estimate(column, picks) for name, column in laid.means_P.items()}
    for name, measure in (("auc", _auc), ("calibration_error", calibration_error), ("risk_area", risk_area)):
        found[name] = _estimate(measure, laid.truths_P_G, laid.scores_P_G, picks[:curves])
    commands = [judged.command for answer in answers for judged in answer.samples]
    found["distinct"] = Estimate(len(set(commands)) / len(commands) if commands else None, tasks=len(answers))
    return found


def mean_estimate(column_P: Array, picks: NDArray[np.int64]) -> Estimate:
    """The mean over the tasks where it is known; a resample of unknown ones alone says nothing."""
    known = ~np.isnan(column_P)
    if not known.any():
        return Estimate(None)
    filled = np.where(known, column_P, 0.0)
    sizes = known[picks].sum(axis=1)
    with np.errstate(invalid="ignore"):
        low, high = interval(filled[picks].sum(axis=1) / sizes)
    return Estimate(float(column_P[known].mean()), low, high, int(known.sum()))


def _estimate(
    measure: Callable[[Array, Array], float], truths_P_G: Array, scores_P_G: Array, picks: NDArray[np.int64]
) -> Estimate:
    """A measure of all samples, over all tasks and over each pick of them."""
    value = measure(truths_P_G, scores_P_G)
    known = int((~np.isnan(scores_P_G)).any(axis=1).sum())
    if math.isnan(value):
        return Estimate(None, tasks=known)
    low, high = interval([measure(truths_P_G[pick], scores_P_G[pick]) for pick in picks])
    return Estimate(value, low, high, known)


def _pooled(truths_P_G: Array, scores_P_G: Array) -> tuple[Array, Array]:
    both = ~np.isnan(truths_P_G) & ~np.isnan(scores_P_G)
    return truths_P_G[both], scores_P_G[both]


def _auc(truths_P_G: Array, scores_P_G: Array) -> float:
    """As `metrics.auc`, over arrays."""
    truths, scores = _pooled(truths_P_G, scores_P_G)
    right = int(truths.sum())
    wrong = len(truths) - right
    if not right or not wrong:
        return math.nan
    return float((stats.rankdata(scores)[truths == 1].sum() - right * (right + 1) / 2) / (right * wrong))


def bins(truths_P_G: Array, scores_P_G: Array) -> list[tuple[float, float, int]]:
    """Calibration: samples in ten equally large groups by score -> (mean score, share that is right, samples) of each."""
    truths, scores = _pooled(truths_P_G, scores_P_G)
    _, equals = np.unique(scores, return_inverse=True)
    truths = (np.bincount(equals, truths) / np.bincount(equals))[
        equals
    ]  # no group may depend on the order of equal scores
    order = np.argsort(scores, kind="stable")
    groups = np.array_split(order, min(BINS, max(1, len(order))))
    return [
        (float(scores[group].mean()), float(truths[group].mean()), len(group))
        for group in groups
        if len(group)
    ]


def calibration_error(truths_P_G: Array, scores_P_G: Array) -> float:
    """Expected calibration error (Naeini et al. 2015): |mean score - share that is right|, averaged over the ten groups."""
    groups = bins(truths_P_G, scores_P_G)
    samples = sum(size for _, _, size in groups)
    return (
        math.fsum(abs(score - right) * size for score, right, size in groups) / samples
        if samples
        else math.nan
    )


def risk_coverage(truths_P_G: Array, scores_P_G: Array) -> list[tuple[float, float, float]]:
    """Acting only on the best-scored sample of the tasks whose best score is high (Geifman & El-Yaniv 2017).

    Returns:
        (coverage: share of tasks acted on, risk: share of these that are wrong, the score from which on one acts), rising coverage;
        one point for each different score, since equal scores cannot be told apart.
    """
    both = ~np.isnan(truths_P_G) & ~np.isnan(scores_P_G)
    rows = both.any(axis=1)
    if not rows.any():
        return []
    filled = np.where(both, scores_P_G, -np.inf)[rows]
    best = filled.argmax(axis=1)
    scores = filled[np.arange(len(best)), best]
    wrong = 1 - truths_P_G[rows][np.arange(len(best)), best]
    order = np.argsort(-scores, kind="stable")
    scores, errors = scores[order], np.cumsum(wrong[order])
    last_of_equals = np.append(scores[1:] != scores[:-1], True)
    places = np.flatnonzero(last_of_equals).tolist()
    return [
        ((place + 1) / len(scores), float(errors[place]) / (place + 1), float(scores[place]))
        for place in places
    ]


def risk_area(truths_P_G: Array, scores_P_G: Array) -> float:
    """Area under the risk-coverage curve, as the mean risk over coverages: 0 is never wrong, the error rate is no better than chance."""
    points = risk_coverage(truths_P_G, scores_P_G)
    if not points:
        return math.nan
    coverages = [0.0, *(coverage for coverage, _, _ in points)]
    return math.fsum(
        (after - before) * risk
        for before, after, (_, risk, _) in zip(coverages, coverages[1:], points, strict=False)
    )


# ---- one model over its run ----


def fall_since_peak(
    history: Sequence[Sequence[float | None]], window: int
) -> tuple[float, float, int] | None:
    """Whether truth fell: the mean of the last `window` evaluations less that of the best earlier window that does not overlap.

    Args:
        history: one row an evaluation, one value a task, always the same tasks.

    Returns:
        (change, upper end of its 99 % paired-bootstrap interval, evaluations since the best window ended); None with too few
        evaluations. The interval holds for all earlier windows at once: the best of many looks fallen from by chance, and more so the
        longer the run. It is the change less the 0.5 % quantile of the lowest deviation of any window's change (a max-type bootstrap).
    """
    if len(history) < 2 * window:
        return None
    values = np.array(
        [[math.nan if value is None else value for value in row] for row in history], dtype=float
    )
    values = values[:, ~np.isnan(values).any(axis=0)]
    if values.shape[1] < 2:
        return None
    means = np.array([values[end - window : end].mean(axis=0) for end in range(window, len(values) + 1)])
    changes = means[-1] - means[:-window]  # a row an earlier window, a column a task
    peak = int(np.argmax(means[:-window].mean(axis=1)))
    picks = resamples(changes.shape[1], ROUNDS)
    lowest = np.min([change[picks].mean(axis=1) - change.mean() for change in changes], axis=0)
    change = float(changes[peak].mean())
    return change, change - float(np.quantile(lowest, 0.005)), len(means) - 1 - peak
