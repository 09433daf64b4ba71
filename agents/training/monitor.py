"""Is the run still healthy, and which of its cycles was best: alarms and `--keep best`, for every trainer.

`--keep best` sees no label. The divergence alarm sees held-out truth, as the numbers that the evaluation logs; it trains nothing.

A run diverges when its own score rises while held-out truth falls, both by their intervals; it collapses when its commands become
few, short, long, certain, or copies of the task, or when the score rises under the model as it trains but not under its base.
An alarm says so once, marks its cycles as `alarm/<name>` = 1 in TensorBoard, and changes nothing in the training.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agents.evaluation.metrics import mean
from agents.policy.policy import Policy
from agents.training.rollouts import Rollout
from envs.prompts import forward_prompt
from envs.streams import seed_of
from envs.types import Reward, Task
from rewards.wrappers import with_inverter

WINDOW = 3  # cycles over which scores are averaged, as in the evaluation
PROBES = 60  # fixed training tasks on whose greedy commands the best cycle is chosen

# Each is compared with its own value after the first cycle: (metric, what is wrong, whether it is).
COLLAPSE: dict[str, tuple[str, str, Any]] = {
    "distinct": (
        "policy/distinct",
        "the candidates are nearly all the same",
        lambda now, first: now < first / 2,
    ),
    "n-grams": (
        "policy/distinct_2",
        "the commands are made of few phrases",
        lambda now, first: now < first / 2,
    ),
    "entropy": (
        "policy/entropy",
        "the policy is nearly certain of every token",
        lambda now, first: now < first / 10,
    ),
    "length": (
        "policy/length",
        "the length of the commands has changed",
        lambda now, first: not first / 2 <= now <= first * 2,
    ),
    "copied": (
        "policy/copied",
        "the commands repeat the words of their tasks",
        lambda now, first: now > first + 0.2,
    ),
    "private code": (
        "reward/current_minus_base",
        "the score rises under the model as it trains but not under its base: a code of their own",
        lambda now, first: now > first + 0.15,
    ),
}


def text_metrics(rollouts: Sequence[Rollout]) -> dict[str, float | None]:
    """`policy/distinct` and `policy/distinct_2`: shares of different commands and word pairs; `policy/copied`: of task words repeated.

    Only plain words of three letters or more count as copied: a command must repeat the names and numbers of its task.
    """
    commands = [rollout.completion.text for rollout in rollouts]
    pairs = [pair for words in map(str.split, commands) for pair in itertools.pairwise(words)]
    copied = []
    for rollout in rollouts:
        asked = {word for word in rollout.task.text.lower().split() if re.fullmatch(r"[a-z]{3,}", word)}
        if asked:
            copied.append(
                len(asked & set(re.findall(r"[a-z]{3,}", rollout.completion.text.lower()))) / len(asked)
            )
    return {
        "policy/distinct": len(set(commands)) / len(commands) if commands else None,
        "policy/distinct_2": len(set(pairs)) / len(pairs) if pairs else None,
        "policy/copied": mean(copied),
    }


@dataclass
class Monitor:
    """Watches the cycles of a run. `state` is what a checkpoint keeps of it."""

    # A row for each batch that the policy wrote, from the untrained one on: mean score of each task. Of a trainer that writes nothing after
    # its update, the effect of that is seen a cycle later, in these rows and in all measures of text.
    scores: list[list[float]] = field(default_factory=list)
    first: dict[str, float] = field(default_factory=dict)
    raised: list[str] = field(default_factory=list)
    kept: dict[str, float] = field(default_factory=dict)  # cycle -> the score by which the best is chosen

    @property
    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint; `Monitor(**state)` goes on."""
        return copy.deepcopy(
            {"scores": self.scores, "first": self.first, "raised": self.raised, "kept": self.kept}
        )

    def scored(self, groups: Sequence[Sequence[Rollout]]) -> None:
        """Notes the scores of one evaluation's worth of tasks: before the first cycle, then after each."""
        rows = [
            [rollout.score.value for rollout in group if rollout.score.value is not None] for group in groups
        ]
        self.scores.append([round(sum(row) / len(row), 6) for row in rows if row])

    def observe(self, metrics: Mapping[str, float | None]) -> tuple[dict[str, float], list[str]]:
        """The alarms of a cycle -> (`alarm/<name>`: 1 or 0, a line for each that was not raised before).

        Args:
            metrics: all of the cycle's numbers, those of the evaluation included.
        """
        alarms = {"divergence": self._diverges(metrics)}
        lines = {"divergence": "its own score rises while held-out truth falls"}
        for name, (metric, what, wrong) in COLLAPSE.items():
            now = metrics.get(metric)
            if now is None:
                continue
            alarms[name] = bool(wrong(now, self.first.setdefault(metric, now)))
            lines[name] = f"{what} ({metric} {self.first[metric]:.3f} after the first cycle, {now:.3f} now)"
        new = [name for name, alarm in alarms.items() if alarm and name not in self.raised]
        self.raised += new
        values = {f"alarm/{name.replace(' ', '_')}": float(alarm) for name, alarm in alarms.items()}
        return values, [f"ALARM {name}: {lines[name]}" for name in new]

    def _diverges(self, metrics: Mapping[str, float | None]) -> bool:
        high, ago = metrics.get("eval/since_peak/high"), metrics.get("eval/since_peak/cycles")
        if high is None or ago is None or high >= 0:
            return False
        end = len(self.scores) - int(ago)
        before = [score for row in self.scores[max(0, end - WINDOW) : end] for score in row]
        now = [score for row in self.scores[-WINDOW:] for score in row]
        return rose(before, now)

    @property
    def best(self) -> int | None:
        """The cycle whose score by `keep_score` is highest, the first of equals; 0 is the start."""
        return (
            max(map(int, self.kept), key=lambda cycle: (self.kept[str(cycle)], -cycle)) if self.kept else None
        )


def rose(before: Sequence[float], now: Sequence[float], rounds: int = 2000) -> bool:
    """Whether the 95 % bootstrap interval of the rise of the mean lies above 0; the two are of different tasks."""
    if len(before) < 2 or len(now) < 2:
        return False
    rng = np.random.default_rng(0)
    means = [
        np.asarray(values)[rng.integers(len(values), size=(rounds, len(values)))].mean(axis=1)
        for values in (before, now)
    ]
    return bool(np.quantile(means[1] - means[0], 0.025) > 0)


def keep_score(
    policy: Policy, reward: Reward, tasks: Sequence[Task], max_new_tokens: int, seed: int
) -> float:
    """By what `--keep best` chooses: the mean score of greedy commands for fixed tasks, read back by the base where the reward reads back.

    The base cannot agree with the policy on a code of their own, and fixed tasks with greedy commands differ by the weights alone.
    """
    twin = with_inverter(reward, "base")
    written = policy.generate(
        [forward_prompt(task) for task in tasks], temperature=0.0, max_new_tokens=max_new_tokens
    )
    scores = twin(tasks, [[row[0].text] for row in written], seed=seed_of(seed, "keep"))
    return mean([row[0].value for row in scores if row[0].value is not None]) or 0.0
