"""The statistics of an evaluation, against hand-computed values, brute force, scikit-learn and simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from agents.evaluation.answers import Answer, Judged
from agents.evaluation.bootstrap import ROUNDS, interval, resamples
from agents.evaluation.paired import difference, mcnemar
from agents.evaluation.statistics import (
    Estimate,
    bins,
    calibration_error,
    estimates,
    fall_since_peak,
    mean_estimate,
    risk_area,
    risk_coverage,
    table,
)
from envs.types import Score, Task
from envs.verify.truth import Case
from envs.verify.verdict import Status, Verdict

STATUS: dict[str, Status] = {"+": "correct", "-": "wrong", "!": "invalid", "?": "not_executed"}
NAN = math.nan


def judged(mark: str, score: Score | None = None, command: str = "c") -> Judged:
    return Judged(command, Verdict(STATUS[mark]), mark == "+", score)


def answer(
    number: int,
    greedy: str,
    samples: str = "",
    scores: Sequence[float | None] | None = None,
    inverse: bool | None = None,
) -> Answer:
    """A task with these verdicts; without `scores` no reward was asked, a None is an abstention."""
    given = [None if scores is None else Score(scores[place]) for place in range(len(samples))]
    written = tuple(
        judged(mark, score, f"{number}-{place}")
        for place, (mark, score) in enumerate(zip(samples, given, strict=True))
    )
    return Answer(Case(Task(f"t/{number}", "network", "x"), "r"), judged(greedy), written, inverse)


def values(answers: Sequence[Answer], k: int) -> dict[str, float | None]:
    return {name: estimate.value for name, estimate in estimates(answers, k, rounds=50).items()}


THREE = [
    answer(0, "+", "+-", [0.9, 0.2], inverse=True),
    answer(1, "-", "-!", [0.6, 0.6], inverse=False),
    answer(2, "?", "+?", [0.5, 0.8]),
]


def test_every_metric_by_hand() -> None:
    assert values(THREE, 2) == pytest.approx(
        {
            "greedy": 1 / 2,  # the third is not known
            "pass@1": (1 / 2 + 0 + 1) / 3,
            "pass@2": 1 / 2,  # the third has one known sample
            "reward": (0.55 + 0.6 + 0.5) / 3,  # of what was verified, since it is compared with truth
            "reward_minus_truth": (0.05 + 0.6 - 0.5) / 3,
            "best_of_k": (1 + 0 + 1) / 3,
            "auc_within": 1.0,  # the first alone has right and wrong ones
            "auc": 4 / 6,  # 0.9 and 0.5 against 0.2, 0.6, 0.6
            "abstained": 0.0,
            "invalid": (0 + 1 / 3 + 0) / 3,
            "not_executed": (0 + 0 + 2 / 3) / 3,
            "exact": 1 / 3,
            "plain": 1.0,
            "inverse": 1 / 2,
            "distinct": 1.0,
            "risk_area": (0 + 1 / 2 + 1 / 3)
            / 3,  # acts on 0.9 (right), then on 0.6 (wrong), then on 0.5 (right)
            "calibration_error": (0.1 + 0.2 + 0.6 + 0.6 + 0.5)
            / 5,  # five samples, each in a group of its own
        }
    )
    tasks = {name: estimate.tasks for name, estimate in estimates(THREE, 2).items()}
    assert (tasks["greedy"], tasks["pass@1"], tasks["pass@2"], tasks["auc_within"], tasks["auc"]) == (
        2,
        3,
        2,
        1,
        3,
    )


def test_abstentions_are_left_out_and_counted() -> None:
    found = values(
        [answer(0, "+", "-+", [None, 0.1]), answer(1, "+", "--", [None, None]), answer(2, "+", "+-")], 2
    )
    assert found["abstained"] == (0.5 + 1.0) / 2  # the third was not scored at all
    assert found["best_of_k"] == 1.0 and found["reward"] == 0.1 and found["auc"] is None
    assert found["pass@1"] == pytest.approx((0.5 + 0 + 0.5) / 3)  # truth does not need the reward


def test_equal_scores_pick_the_first() -> None:
    assert values([answer(0, "+", "-+", [0.5, 0.5])], 2)["best_of_k"] == 0.0
    assert values([answer(0, "+", "+-", [0.5, 0.5])], 2)["best_of_k"] == 1.0


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one() -> None:
    rng = np.random.default_rng(0)
    rows = ["".join(rng.choice(list("+-!"), size=5)) for _ in range(8)]
    for k in range(1, 6):
        expected = [np.mean([("+" in subset) for subset in itertools.combinations(row, k)]) for row in rows]
        assert values([answer(n, "+", row) for n, row in enumerate(rows)], k)[f"pass@{k}"] == pytest.approx(
            np.mean(expected)
        )


def test_aucs_are_scikit_learns() -> None:
    roc_auc_score = pytest.importorskip("sklearn.metrics").roc_auc_score
    rng = np.random.default_rng(1)
    truths = rng.random((40, 6)) < 0.5
    scores = rng.integers(8, size=(40, 6)) / 8 + 0.2 * truths
    answers = [
        answer(n, "+", "".join("-+"[int(t)] for t in truths[n]), scores[n].tolist()) for n in range(40)
    ]
    found = values(answers, 6)
    assert found["auc"] == pytest.approx(roc_auc_score(truths.ravel(), scores.ravel()))
    mixed = [n for n in range(40) if 0 < truths[n].sum() < 6]
    assert found["auc_within"] == pytest.approx(np.mean([roc_auc_score(truths[n], scores[n]) for n in mixed]))


@pytest.mark.parametrize("k", [1, 2])
def test_nothing_executed_says_nothing(k: int) -> None:
    found = estimates([answer(n, "?", "??", [0.3, 0.4]) for n in range(5)], k)
    known = {"not_executed": 1.0, "exact": 0.0, "plain": 1.0, "abstained": 0.0, "distinct": 1.0}
    assert {name: estimate.value for name, estimate in found.items()} == {
        **dict.fromkeys(found, None),
        **known,
    }
    assert all(estimate.low is estimate.high is None for name, estimate in found.items() if name not in known)
    assert found["greedy"].tasks == found["auc"].tasks == 0


def test_no_answers_and_no_samples() -> None:
    assert {estimate.value for estimate in estimates([], 4).values()} == {None}
    found = values([answer(0, "+"), answer(1, "-")], 4)
    assert (
        found["greedy"] == 0.5
        and found["pass@1"] is found["pass@4"] is found["auc"] is found["distinct"] is None
    )


def test_one_task_has_values_and_no_intervals() -> None:
    found = estimates(THREE[:1], 1)
    assert found["greedy"] == Estimate(1.0, None, None, 1)
    assert found["auc"] == Estimate(1.0, None, None, 1)
    assert "pass@1" in found and found["pass@1"].value == 0.5


def test_fewer_rounds() -> None:
    found = estimates(THREE, 2, rounds=0)
    assert {estimate.low for estimate in found.values()} == {None}
    assert found["auc"].value is not None
    some = estimates(THREE, 2, rounds=50, curves=0)
    assert some["greedy"].low is not None and some["auc"].low is some["risk_area"].low is None
    assert some["auc"].value == found["auc"].value


def test_a_table_has_a_row_a_task() -> None:
    laid = table(THREE, 2)
    np.testing.assert_array_equal(laid.right_P_G, [[1, 0], [0, 0], [1, NAN]])
    np.testing.assert_array_equal(laid.scores_P_G, [[0.9, 0.2], [0.6, 0.6], [0.5, NAN]])
    np.testing.assert_array_equal(laid.means_P["greedy"], [1, 0, NAN])


# ---- intervals ----


def test_unknown_values_take_no_part_in_an_interval() -> None:
    picks = resamples(6, 500)
    known = mean_estimate(np.array([0.0, 1.0, 1.0, NAN, NAN, NAN]), picks)
    assert known.value == pytest.approx(2 / 3) and known.tasks == 3
    assert known.low is not None and known.high is not None and 0 <= known.low < 2 / 3 < known.high <= 1
    assert mean_estimate(np.array([1.0] + [NAN] * 5), picks) == Estimate(1.0, 1.0, 1.0, 1)
    assert mean_estimate(np.full(6, NAN), picks) == Estimate(None)
    assert interval([NAN, NAN]) == interval([]) == (None, None)
    assert interval([NAN, *range(101)], 0.9) == pytest.approx((5.0, 95.0))


def test_intervals_cover_the_truth() -> None:
    """Four dependent samples per task: an interval over samples would be half as wide and miss the truth."""
    rng = np.random.default_rng(2)
    picks = resamples(80, 400)
    inside = []
    for _ in range(300):
        chance = rng.beta(0.5, 0.5, size=80)
        estimate = mean_estimate(rng.binomial(4, chance) / 4, picks)
        assert estimate.low is not None and estimate.high is not None
        inside.append(estimate.low <= 0.5 <= estimate.high)
    assert 0.90 < np.mean(inside) < 0.985


def test_the_same_each_time() -> None:
    np.random.seed(7)
    first = estimates(THREE, 2, rounds=200)
    np.random.seed(8)
    assert estimates(THREE, 2, rounds=200) == first
    np.testing.assert_array_equal(resamples(9, 20), resamples(9, 20))
    assert (resamples(9, 20, seed=1) != resamples(9, 20, seed=2)).any()


# ---- two models ----


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    rng = np.random.default_rng(3)
    first = rng.random(100)
    second = first + rng.normal(0.02, 0.01, 100)
    found = difference(first, second)
    shuffled = difference(first, rng.permutation(second))
    assert (
        found.low is not None
        and found.high is not None
        and shuffled.low is not None
        and shuffled.high is not None
    )
    assert found.high - found.low < (shuffled.high - shuffled.low) / 10
    assert (found.verdict, shuffled.verdict) == ("better", "no difference shown")
    assert found.value == pytest.approx(shuffled.value) == pytest.approx((second - first).mean())
    assert found.p is found.gained is found.lost is None  # not a matter of right or wrong


def test_models_are_resampled_alike() -> None:
    """Over the same resamples, a model better by 0.1 on every task has ends higher by 0.1."""
    column = np.random.default_rng(4).random(50)
    low, high = (mean_estimate(column + shift, resamples(50, 300)) for shift in (0.0, 0.1))
    assert low.low is not None and low.high is not None
    assert (high.low, high.high) == pytest.approx((low.low + 0.1, low.high + 0.1))


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (6, 1, 2 * 8 / 128),
        (10, 2, 2 * 79 / 4096),
        (2, 10, 158 / 4096),
        (3, 3, 1.0),
    ],
)
def test_mcnemar_is_the_exact_binomial(gained: int, lost: int, p: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(p)


def binary(gained: int, lost: int, tasks: int) -> tuple[Any, Any]:
    first, second = np.ones(tasks), np.ones(tasks)
    first[:gained] = 0.0
    second[gained : gained + lost] = 0.0
    return first, second


@pytest.mark.parametrize(
    ("gained", "lost", "verdict"),
    [
        (12, 1, "better"),
        (1, 12, "worse"),
        (5, 4, "no difference shown"),
        (0, 0, "no difference shown"),
        (4, 0, "no difference shown"),
    ],
)
def test_the_verdict_on_right_and_wrong(gained: int, lost: int, verdict: str) -> None:
    found = difference(*binary(gained, lost, 100))
    assert (found.gained, found.lost, found.tasks) == (gained, lost, 100)
    assert found.value == pytest.approx((gained - lost) / 100) and found.p == pytest.approx(
        mcnemar(gained, lost)
    )
    assert found.verdict == verdict


def test_a_few_tasks_make_no_model_better() -> None:
    found = difference(*binary(4, 0, 4))
    assert (found.low, found.high, found.p) == (
        1.0,
        1.0,
        0.125,
    )  # the interval of four equal changes is a point
    assert found.verdict == "no difference shown"
    assert difference(np.array([0.0]), np.array([1.0])).verdict == "not measured"


def test_equal_models_are_seldom_called_different() -> None:
    rng = np.random.default_rng(5)
    called = 0
    for _ in range(200):
        first = (rng.random(60) < 0.5).astype(float)
        second = np.where(rng.random(60) < 0.3, 1 - first, first)
        called += difference(first, second, rounds=200).verdict != "no difference shown"
    assert called / 200 < 0.08


def test_tasks_that_one_model_has_not_are_left_out() -> None:
    found = difference(np.array([0.0, NAN, 1.0, 0.0]), np.array([1.0, 1.0, NAN, 0.0]))
    assert (found.tasks, found.value, found.gained, found.lost) == (2, 0.5, 1, 0)
    nothing = difference(np.array([NAN, 1.0]), np.array([1.0, NAN]))
    assert (nothing.value, nothing.tasks, nothing.verdict) == (None, 0, "not measured")


# ---- choosing by the reward ----


def test_risk_coverage_by_hand() -> None:
    truths = np.array([[1, 0], [0, 1], [0, 0], [1, NAN]])
    scores = np.array([[0.9, 0.1], [0.8, 0.3], [0.8, 0.2], [0.4, NAN]])
    assert risk_coverage(truths, scores) == [
        (0.25, 0.0, 0.9),
        (0.75, pytest.approx(2 / 3), 0.8),
        (1.0, 0.5, 0.4),
    ]
    assert risk_area(truths, scores) == pytest.approx(0.25 * 0 + 0.5 * 2 / 3 + 0.25 * 0.5)
    unknown = np.full((2, 2), NAN)
    assert risk_coverage(unknown, unknown) == [] and risk_area(unknown, unknown) is None


def test_risk_coverage_of_many() -> None:
    rng = np.random.default_rng(6)
    truths, scores = (rng.random((50, 3)) < 0.6).astype(float), rng.integers(12, size=(50, 3)) / 11
    scores[rng.random((50, 3)) < 0.2] = NAN
    kept = ~np.isnan(scores).all(axis=1)
    points = risk_coverage(truths, scores)
    coverages, _, thresholds = zip(*points, strict=True)
    assert list(coverages) == sorted(set(coverages)) and coverages[-1] == 1.0
    assert list(thresholds) == sorted(set(thresholds), reverse=True)
    best, picks = np.nanmax(scores[kept], axis=1), np.nanargmax(scores[kept], axis=1)
    wrong = 1 - truths[kept][np.arange(kept.sum()), picks]
    for coverage, risk, threshold in points:
        acted = best >= threshold
        assert (coverage, risk) == pytest.approx((acted.mean(), wrong[acted].mean()))
    rows = ["".join("-+"[int(t)] for t in row) for row in truths]
    answers = [
        answer(n, "+", row, [None if np.isnan(s) else s for s in scores[n]]) for n, row in enumerate(rows)
    ]
    assert points[-1][1] == pytest.approx(1 - (values(answers, 3)["best_of_k"] or 0.0))
    grid = (np.arange(100_000) + 0.5) / 100_000
    steps = np.searchsorted(coverages, grid)
    assert risk_area(truths, scores) == pytest.approx(np.mean([points[step][1] for step in steps]), abs=1e-4)


def test_a_useless_and_a_perfect_score() -> None:
    truths = np.array([[1.0], [0.0], [1.0], [0.0]])
    assert risk_area(truths, np.full((4, 1), 0.5)) == 0.5
    assert risk_area(truths, truths) == pytest.approx(0.5 * 0 + 0.5 * 0.5)


def test_calibration_by_hand() -> None:
    scores = np.array([[place / 20 for place in range(20)]]).reshape(
        10, 2
    )  # pairs of neighbours make up the ten groups
    truths = np.tile([0.0, 1.0], (10, 1))
    assert bins(truths, scores) == [(pytest.approx((4 * row + 1) / 40), 0.5, 2) for row in range(10)]
    assert calibration_error(truths, scores) == pytest.approx(
        np.mean([abs((4 * row + 1) / 40 - 0.5) for row in range(10)])
    )
    assert bins(np.array([[1.0, NAN]]), np.array([[0.25, 0.5]])) == [(0.25, 1.0, 1)]
    assert calibration_error(np.array([[1.0]]), np.array([[0.25]])) == 0.75
    assert bins(np.full((1, 1), NAN), np.full((1, 1), 0.5)) == [] and (
        calibration_error(np.empty((0, 0)), np.empty((0, 0))) is None
    )


def test_calibration_does_not_depend_on_the_order_of_equal_scores() -> None:
    scores = np.full((20, 2), 0.5)
    sorted_truths = np.repeat([1.0, 0.0], 20).reshape(
        20, 2
    )  # right ones first: ten groups in order would be all right or all wrong
    assert calibration_error(sorted_truths, scores) == pytest.approx(0.0)
    mixed = np.random.default_rng(8).permutation(40)
    some = np.round(np.random.default_rng(9).random(40), 1)
    truths = (np.random.default_rng(10).random(40) < some).astype(float)
    expected = calibration_error(truths[:, None], some[:, None])
    assert calibration_error(truths[mixed][:, None], some[mixed][:, None]) == pytest.approx(expected)


# ---- did truth fall? ----


def history(
    cycles: int, seed: int, flips: float = 0.1, fall_at: int | None = None, tasks: int = 72
) -> list[list[float | None]]:
    """A run whose chance of being right on a task stays the same; each cycle redraws `flips` of the tasks.

    From evaluation `fall_at` on, all chances are lower by 0.2 of all tasks.
    """
    rng = np.random.default_rng(seed)
    chance = rng.beta(0.5, 0.5, size=tasks)
    right, rows = rng.random(tasks) < chance, []
    for cycle in range(cycles + 1):
        if cycle == fall_at:
            chance = chance * 0.6
            right = right & (rng.random(tasks) < 0.6)
        right = np.where(rng.random(tasks) < flips, rng.random(tasks) < chance, right)
        rows.append([float(value) for value in right])
    return rows  # type: ignore[return-value]


def first_alarm(rows: Sequence[Sequence[float | None]]) -> int | None:
    for end in range(6, len(rows) + 1):
        found = fall_since_peak(rows[:end], 3)
        assert found is not None
        if found[1] < 0:
            return end - 1
    return None


def test_fall_by_hand() -> None:
    up, down = [1.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]
    assert fall_since_peak([up] * 5, 3) is None
    assert fall_since_peak([up] * 6, 3) == (0.0, 0.0, 3)
    change, high, ago = fall_since_peak([down, up, up, up, down, down, down], 3) or (0, 0, 0)
    assert (change, ago) == (-0.5, 3) and high >= change
    change, _, ago = fall_since_peak([up, up, up, down, down, down, up, up, up], 3) or (0, 0, 0)
    assert (change, ago) == (0.0, 6)
    assert (fall_since_peak([down, down, up, up], 1) or (1, 1, 1))[::2] == (0.0, 1)


def test_tasks_that_were_once_not_executed_are_dropped() -> None:
    whole = history(8, 0)
    holed = [[*row, None if place == 4 else 1.0] for place, row in enumerate(whole)]
    assert fall_since_peak(holed, 3) == fall_since_peak(whole, 3)
    assert fall_since_peak([[None, None]] * 8, 3) is None
    assert fall_since_peak([[1.0, None]] * 8, 3) is None  # one task is no sample


@pytest.mark.slow
def test_healthy_runs_seldom_look_fallen() -> None:
    """The share of flat runs of 10 to 50 cycles in which the interval ever lies below 0."""
    alarms = [
        first_alarm(history(cycles, 1000 + 100 * cycles + seed)) is not None
        for cycles in (10, 30, 50)
        for seed in range(8)
    ]
    assert np.mean(alarms) <= 0.1


def test_the_best_of_many_windows_is_no_reference_by_itself() -> None:
    """The bound widens with the number of windows that the peak was chosen from."""
    rows = history(40, 3)
    changes = [
        np.mean(rows[-3:], axis=0) - np.mean(rows[end - 3 : end], axis=0) for end in range(3, len(rows) - 2)
    ]
    worst = min(changes, key=np.mean)
    alone = interval(worst[resamples(len(worst), 2000)].mean(axis=1), 0.99)[1]
    found = fall_since_peak(rows, 3)
    assert found is not None and alone is not None
    assert found[0] == pytest.approx(worst.mean()) and found[1] > alone


def test_a_real_fall_is_found() -> None:
    found = [first_alarm(history(20, seed, fall_at=10)) for seed in range(12)]
    assert sum(cycle is not None and 10 <= cycle <= 20 for cycle in found) >= 10


def test_rounds_are_those_of_the_report() -> None:
    assert ROUNDS == 2000 and resamples(5, 3).shape == (3, 5) and resamples(1, 3).shape == (0, 1)
