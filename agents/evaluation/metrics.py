"""Numbers about candidates: pass@k, AUC, diversity, intervals. Plain functions over plain lists."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats


def mean(values: Sequence[float]) -> float | None:
    """The mean, or None of nothing."""
    return math.fsum(values) / len(values) if values else None


def pass_at_k(correct: int, n: int, k: int) -> float:
    """Unbiased pass@k from n samples of which `correct` are right (Chen et al. 2021, equation 1); it is not defined for k > n."""
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {correct} right ones among {n} samples")
    if n - correct < k:
        return 1.0
    return 1.0 - math.prod((n - correct - i) / (n - i) for i in range(k))


def auc(truths: Sequence[bool], scores: Sequence[float]) -> float | None:
    """The chance that a right one scores above a wrong one, ties half; None where one of the kinds is missing."""
    ranks = stats.rankdata(scores)
    ranks_of_right = [rank for truth, rank in zip(truths, ranks, strict=True) if truth]
    right, wrong = len(ranks_of_right), len(truths) - len(ranks_of_right)
    if not right or not wrong:
        return None
    return (math.fsum(ranks_of_right) - right * (right + 1) / 2) / (right * wrong)


def within_task_auc(
    truths_P_G: Sequence[Sequence[bool]], scores_P_G: Sequence[Sequence[float]]
) -> float | None:
    """AUC among the candidates of one task, averaged over the tasks that have right and wrong ones."""
    values = [auc(truths, scores) for truths, scores in zip(truths_P_G, scores_P_G, strict=True)]
    return mean([value for value in values if value is not None])


def best_of(truths_P_G: Sequence[Sequence[bool]], scores_P_G: Sequence[Sequence[float]]) -> float | None:
    """Share of tasks whose best-scored candidate is right (the first of equals)."""
    picks = [
        truths[int(np.argmax(scores))]
        for truths, scores in zip(truths_P_G, scores_P_G, strict=True)
        if len(scores)
    ]
    return mean([float(pick) for pick in picks])


def kept(
    truths_P_G: Sequence[Sequence[bool]], values_P_G: Sequence[Sequence[float | None]]
) -> tuple[list[list[bool]], list[list[float]]]:
    """Truths and scores without the candidates on which the reward abstained."""
    pairs_P_G = [
        [(truth, value) for truth, value in zip(truths, values, strict=True) if value is not None]
        for truths, values in zip(truths_P_G, values_P_G, strict=True)
    ]
    return [[truth for truth, _ in row] for row in pairs_P_G], [
        [value for _, value in row] for row in pairs_P_G
    ]


def bootstrap_interval(
    values: Sequence[float], seed: int = 0, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, resampling the values (10,000 times); of at least one."""
    if not len(values):
        raise ValueError("an interval of no values")
    data = np.asarray(values, dtype=float)
    rng = np.random.default_rng(seed)
    means = data[rng.integers(len(data), size=(10_000, len(data)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean of a few independent values, such as one gain a seed; of at least two."""
    if len(values) < 2:
        raise ValueError(f"a t interval of {len(values)} values")
    centre, error = float(np.mean(values)), float(stats.sem(values))
    half = error * float(stats.t.ppf((1 + confidence) / 2, len(values) - 1))
    return centre - half, centre + half
