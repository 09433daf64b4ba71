"""Two models on the same tasks: paired bootstrap and McNemar's test, over plain arrays.

Apart from the rest of the statistics, so that comparisons of finished runs can use it without importing
`envs.verify`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from agents.evaluation.bootstrap import ROUNDS, Array, interval, resamples

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Difference:
    """Second minus first, paired by task.

    Attributes:
        low, high: 95 % paired-bootstrap interval over tasks; None for fewer than two tasks.
        tasks: how many were measured for both.
        p, gained, lost: McNemar's exact test, where every value is 0 or 1.
    """

    value: float | None
    low: float | None
    high: float | None
    tasks: int
    p: float | None = None
    gained: int | None = None
    lost: int | None = None

    @property
    def verdict(self) -> str:
        """`better` or `worse` only where the interval excludes 0 and McNemar's test does not contradict it.

        With few tasks that differ, the percentile interval is too narrow: with 4 gained and none lost it lies
            above 0, but p is 0.125.
        """
        if self.low is None or self.high is None:
            return "not measured"
        contradicted = self.p is not None and self.p >= SIGNIFICANT
        if self.low > 0 and not contradicted:
            return "better"
        if self.high < 0 and not contradicted:
            return "worse"
        return "no difference shown"


def difference(first_P: Array, second_P: Array, rounds: int = ROUNDS) -> Difference:
    """Compares one metric of two models; tasks on which either could not be measured (NaN) are left out."""
    both = ~np.isnan(first_P) & ~np.isnan(second_P)
    first, second = first_P[both], second_P[both]
    if not len(first):
        return Difference(None, None, None, 0)
    change = second - first
    low = high = None
    if len(change) > 1:
        low, high = interval(change[resamples(len(change), rounds)].mean(axis=1))
    p = gained = lost = None
    if set(np.unique([first, second])) <= {0.0, 1.0}:
        gained, lost = int((change > 0).sum()), int((change < 0).sum())
        p = mcnemar(gained, lost)
    return Difference(float(change.mean()), low, high, len(change), p, gained, lost)


def by_task(first: Mapping[str, float | None], second: Mapping[str, float | None]) -> Difference:
    """Compares two evaluations, task id -> value, on the tasks that both have."""
    both = [task for task in second if task in first]
    before, after = [first[task] for task in both], [second[task] for task in both]
    return difference(np.array(before, dtype=float), np.array(after, dtype=float))  # None becomes NaN


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact two-sided test on the tasks where two models differ (McNemar 1947; binomial form)."""
    if not gained + lost:
        return 1.0
    return float(stats.binomtest(gained, gained + lost, 0.5).pvalue)
