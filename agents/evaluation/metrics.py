"""Numbers about candidates: pass@k, AUC, best of k. Plain functions over plain lists."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def mean(values: Sequence[float]) -> float | None:
    """The mean; None for an empty list."""
    if not values:
        return None
    return math.fsum(values) / len(values)


def correctness(status: str) -> float | None:
    """A verdict's status as a value: 1.0 for correct, 0.0 for wrong or invalid, None for not executed."""
    if status == "not_executed":
        return None
    return float(status == "correct")


def pass_at_k(correct: int, n: int, k: int) -> float:
    """Unbiased pass@k from n samples of which `correct` are right (Chen et al. 2021, equation 1).

    Raises:
        ValueError: k > n, for which it is not defined, or a count out of range.
    """
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {correct} right ones among {n} samples")
    if n - correct < k:
        return 1.0
    return 1.0 - math.prod((n - correct - i) / (n - i) for i in range(k))


def auc(right: ArrayLike, scores: ArrayLike) -> float | None:
    """The chance that a right candidate scores above a wrong one, ties counting half. None without both.

    The same number as `sklearn.metrics.roc_auc_score`, from rank sums (Mann & Whitney 1947): exact, and fast
    enough to resample.
    """
    is_right, values = np.asarray(right, dtype=bool), np.asarray(scores, dtype=float)
    if len(is_right) != len(values):
        raise ValueError(f"{len(is_right)} verdicts and {len(values)} scores")
    positives = int(is_right.sum())
    negatives = len(is_right) - positives
    if not positives or not negatives:
        return None
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    ranks = np.cumsum(sizes) - (sizes - 1) / 2  # of equal scores the mean of their places
    rank_sum = float(ranks[group][is_right].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def within_task_auc(
    right_P_G: Sequence[Sequence[bool]], scores_P_G: Sequence[Sequence[float]]
) -> float | None:
    """AUC among the candidates of one task, averaged over the tasks that have right and wrong ones."""
    values = []
    for right, scores in zip(right_P_G, scores_P_G, strict=True):
        value = auc(right, scores)
        if value is not None:
            values.append(value)
    return mean(values)


def best_of(right_P_G: Sequence[Sequence[bool]], scores_P_G: Sequence[Sequence[float]]) -> float | None:
    """Share of tasks whose best-scored candidate is right (the first of equals)."""
    picks = []
    for right, scores in zip(right_P_G, scores_P_G, strict=True):
        if len(scores):
            picks.append(float(right[int(np.argmax(scores))]))
    return mean(picks)


def kept(
    right_P_G: Sequence[Sequence[bool]], values_P_G: Sequence[Sequence[float | None]]
) -> tuple[list[list[bool]], list[list[float]]]:
    """Verdicts and scores without the candidates on which the reward abstained."""
    kept_right_P_G, kept_values_P_G = [], []
    for right, values in zip(right_P_G, values_P_G, strict=True):
        kept_right: list[bool] = []
        kept_values: list[float] = []
        for is_right, value in zip(right, values, strict=True):
            if value is not None:
                kept_right.append(is_right)
                kept_values.append(value)
        kept_right_P_G.append(kept_right)
        kept_values_P_G.append(kept_values)
    return kept_right_P_G, kept_values_P_G
