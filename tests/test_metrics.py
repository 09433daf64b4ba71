"""Metrics against brute force, scikit-learn and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from agents.evaluation.metrics import auc, best_of, mean, pass_at_k, within_task_auc
from agents.studies.summary import t_interval


def test_mean() -> None:
    assert mean([]) is None and mean([1, 2, 6]) == 3.0 and mean([0.1] * 10) == 0.1


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n: int) -> None:
    for correct, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
        assert pass_at_k(correct, n, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(
    ("correct", "n", "k"), [(0, 3, 5), (1, 3, 4), (0, 0, 1), (4, 3, 1), (-1, 3, 1), (1, 3, 0)]
)
def test_pass_at_k_is_not_defined_for_more_than_there_are(correct: int, n: int, k: int) -> None:
    with pytest.raises(ValueError):
        pass_at_k(correct, n, k)


def test_auc_is_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for count, levels in itertools.product((2, 5, 9, 60, 400), (1, 2, 4, 10**9)):  # few levels: many ties
        truths = rng.random(count) < 0.4
        truths[:2] = True, False
        scores = rng.integers(levels, size=count) / levels + 0.3 * truths * (levels > 2)
        assert auc(truths.tolist(), scores.tolist()) == pytest.approx(metrics.roc_auc_score(truths, scores))


def test_auc_at_the_edges() -> None:
    assert auc([], []) is auc([True], [1.0]) is auc([False, False], [0.0, 1.0]) is None
    assert (
        auc([True, False], [1.0, 0.0]),
        auc([True, False], [0.0, 1.0]),
        auc([True, False], [1.0, 1.0]),
    ) == (1.0, 0.0, 0.5)
    assert auc([True, False], [-1.0, -math.inf]) == 1.0
    with pytest.raises(ValueError):
        auc([True], [1.0, 2.0])


def test_within_task_auc_compares_no_tasks() -> None:
    truths = [[True, False], [True, False, False], [True, True], [False], []]
    scores = [[0.2, 0.1], [0.8, 0.9, 0.7], [0.5, 0.6], [0.4], []]
    assert within_task_auc(truths, scores) == pytest.approx((1.0 + 0.5) / 2)
    assert within_task_auc([], []) is within_task_auc(truths[2:], scores[2:]) is None


def test_best_of() -> None:
    assert best_of([[False, True], [True, False]], [[0.1, 0.2], [0.1, 0.2]]) == 0.5
    assert (
        best_of([[False, True, True], [True, False, False]], [[0.5, 0.5, 0.1], [0.5, 0.5, 0.5]]) == 0.5
    )  # the first of equals
    assert best_of([[True], []], [[0.0], []]) == 1.0 and best_of([], []) is best_of([[]], [[]]) is None
    with pytest.raises(ValueError):
        best_of([[True]], [])


def test_the_t_interval() -> None:
    interval = t_interval
    values = np.random.default_rng(1).normal(3.0, 1.0, 30).tolist()
    low, high = interval(values)
    assert low < np.mean(values) < high and interval(values) == (low, high)
    narrow_low, narrow_high = interval(values, confidence=0.5)
    assert low < narrow_low < narrow_high < high
    shifted = interval([value + 10 for value in values])
    assert shifted == pytest.approx((low + 10, high + 10))
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    with pytest.raises(ValueError):
        interval([])


def test_one_value_has_no_t_interval() -> None:
    with pytest.raises(ValueError):
        t_interval([1.0])


def test_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(2)

    intervals = [t_interval(rng.normal(1.0, 2.0, 5).tolist()) for _ in range(1000)]
    assert 0.93 < np.mean([low <= 1.0 <= high for low, high in intervals]) < 0.97
