"""The bootstrap behind the intervals of a report: tasks drawn with replacement, then percentiles.

`scipy.stats.bootstrap` does not serve here: unknown values (NaN) must be left out, and all models and metrics
of a report must be drawn alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ROUNDS = 2000
Array = NDArray[np.float64]


def resamples(tasks: int, rounds: int, seed: int = 0) -> NDArray[np.int64]:
    """Rows of tasks drawn with replacement: (rounds, tasks); no rows for fewer than two tasks.

    They are the same for every model, which is what pairs models.
    """
    if tasks < 2:
        return np.empty((0, tasks), dtype=np.int64)
    return np.random.default_rng(seed).integers(tasks, size=(rounds, tasks))


def interval(values: Sequence[float] | Array, confidence: float = 0.95) -> tuple[float | None, float | None]:
    """The percentile interval of bootstrap values; None where there are none."""
    data = np.asarray(values, dtype=float)
    data = data[~np.isnan(data)]
    if not len(data):
        return None, None
    low, high = np.quantile(data, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
