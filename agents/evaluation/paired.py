"""Two models on the same tasks: paired bootstrap and McNemar's test, over plain arrays.

Apart from the rest of the statistics, so that reports on what runs wrote can use it without reaching what is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

ROUNDS = 2000
Array = NDArray[np.float64]


def resamples(tasks: int, rounds: int, seed: int = 0) -> NDArray[np.int64]:
    """Rows of tasks drawn with replacement: (rounds, tasks). The same for every model, which is what pairs them."""
    return (
        np.random.default_rng(seed).integers(tasks, size=(rounds, tasks))
        if tasks > 1
        else np.empty((0, tasks), dtype=np.int64)
    )


def interval(values: Sequence[float] | Array, confidence: float = 0.95) -> tuple[float | None, float | None]:
    """The percentile interval of bootstrap values; None where there are none."""
    data = np.asarray(values, dtype=float)
    data = data[~np.isnan(data)]
    if not len(data):
        return None, None
    low, high = np.quantile(data, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """Second less first, paired by task; `p`, `gained` and `lost` (McNemar's exact test) where the values are right or wrong."""

    value: float | None
    low: float | None
    high: float | None
    tasks: int
    p: float | None = None
    gained: int | None = None
    lost: int | None = None

    @property
    def verdict(self) -> str:
        """`better` or `worse` only where the interval says so, and where McNemar's test does not contradict it.

        With few tasks that differ the percentile interval is too narrow: 4 gained and none lost lie above 0, but p is 0.125.
        """
        if self.low is None or self.high is None:
            return "not measured"
        if self.p is not None and self.p >= 0.05:
            return "no difference shown"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "no difference shown"


def difference(first_P: Array, second_P: Array, rounds: int = ROUNDS) -> Difference:
    """Compares one metric of two models; tasks that either could not be measured on are left out."""
    both = ~np.isnan(first_P) & ~np.isnan(second_P)
    first, second = first_P[both], second_P[both]
    if not len(first):
        return Difference(None, None, None, 0)
    change = second - first
    low, high = (
        interval(change[resamples(len(change), rounds)].mean(axis=1)) if len(change) > 1 else (None, None)
    )
    p = gained = lost = None
    if set(np.unique([first, second])) <= {0.0, 1.0}:
        gained, lost = int((change > 0).sum()), int((change < 0).sum())
        p = mcnemar(gained, lost)
    return Difference(float(change.mean()), low, high, len(change), p, gained, lost)


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact two-sided test of the tasks on which two models differ (McNemar 1947; the binomial form)."""
    return float(stats.binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
