"""Is the run still healthy, and which of its cycles was best: alarms and `--keep best`, for every trainer.

`--keep best` sees no label. The divergence alarm sees held-out accuracy, as the evaluation logs it; it
trains nothing.

A run diverges when its own score rises while held-out accuracy falls, both by their intervals. It
collapses when its commands become few, short, long, certain, or copies of the task, or when the score
rises with the current policy as inverter but not with the base model. An alarm prints one line, marks its
cycles as `alarm/<name>` = 1 in TensorBoard, and changes nothing in the training.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agents.evaluation.metrics import mean
from agents.policy.policy import Policy
from agents.training.rollouts import Rollout
from envs.answers import command_in
from envs.prompts import forward_prompt
from envs.streams import seed_of
from envs.types import Reward, Task
from rewards.wrappers import with_inverter

WINDOW = 3  # cycles over which scores are averaged, as in the evaluation
PROBES = 60  # fixed training tasks: the scores of their greedy commands choose the best cycle


@dataclass(frozen=True)
class Collapse:
    """An alarm about one metric, which is compared with its own value after the first cycle.

    Attributes:
        shrinks: it holds where the metric has become smaller by more than this factor.
        grows: ... or larger by more than this factor.
        rises: ... or has risen by more than this difference.
    """

    metric: str
    what: str
    shrinks: float | None = None
    grows: float | None = None
    rises: float | None = None

    def holds(self, now: float, first: float) -> bool:
        """Whether the metric has changed too much."""
        if self.shrinks is not None and now < first / self.shrinks:
            return True
        if self.grows is not None and now > first * self.grows:
            return True
        return self.rises is not None and now > first + self.rises


COLLAPSE = {
    "distinct": Collapse("policy/distinct", "nearly all candidates are the same", shrinks=2),
    "n-grams": Collapse("policy/distinct_2", "the commands consist of few phrases", shrinks=2),
    "entropy": Collapse("policy/entropy", "the policy is nearly certain of every token", shrinks=10),
    "length": Collapse("policy/length", "the length of the commands has changed", shrinks=2, grows=2),
    "copied": Collapse("policy/copied", "the commands repeat the words of their tasks", rises=0.2),
    "private code": Collapse(
        "reward/current_minus_base",
        "the score rises with the current policy as inverter but not with the base model",
        rises=0.15,
    ),
}


def text_metrics(rollouts: Sequence[Rollout]) -> dict[str, float | None]:
    """`policy/distinct`, `policy/distinct_2` (shares of different commands and word pairs), `policy/copied`.

    The last is the share of a task's words that its command repeats. Only plain words of three letters or
    more count, because a command must repeat the names and numbers of its task.
    """
    commands = [rollout.command for rollout in rollouts]
    pairs = [pair for command in commands for pair in itertools.pairwise(command.split())]
    copied = []
    for rollout in rollouts:
        words = {word for word in rollout.task.text.lower().split() if re.fullmatch(r"[a-z]{3,}", word)}
        written = set(re.findall(r"[a-z]{3,}", rollout.command.lower()))
        if words:
            copied.append(len(words & written) / len(words))
    return {
        "policy/distinct": len(set(commands)) / len(commands) if commands else None,
        "policy/distinct_2": len(set(pairs)) / len(pairs) if pairs else None,
        "policy/copied": mean(copied),
    }


@dataclass
class Monitor:
    """Watches the cycles of a run. `state` is what a checkpoint keeps of it.

    Attributes:
        scores: the mean score of each task, a row for each batch that the policy wrote, beginning with
            the untrained policy. A trainer that writes nothing after its update shows the effect of that
            a cycle later, here and in all measures of text.
        first: metric -> its value after the first cycle.
        raised: the alarms that were printed.
        kept: cycle -> the score that `--keep best` compares.
        lowest: the lowest score of a probe when the run began.
    """

    scores: list[list[float]] = field(default_factory=list)
    first: dict[str, float] = field(default_factory=dict)
    raised: list[str] = field(default_factory=list)
    kept: dict[str, float] = field(default_factory=dict)
    lowest: float | None = None

    @property
    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint; `Monitor(**state)` resumes."""
        return copy.deepcopy(vars(self))

    def scored(self, groups: Sequence[Sequence[Rollout]]) -> None:
        """Notes the scores of one batch: before the first cycle, then after each."""
        means = []
        for group in groups:
            values = [rollout.score.value for rollout in group if rollout.score.value is not None]
            if values:
                means.append(round(sum(values) / len(values), 6))
        self.scores.append(means)

    def observe(self, metrics: Mapping[str, float | None]) -> tuple[dict[str, float], list[str]]:
        """The alarms of a cycle -> (`alarm/<name>`: 1 or 0, a line for each that was not raised before).

        Args:
            metrics: all of the cycle's numbers, those of the evaluation included.
        """
        values = {"alarm/divergence": 0.0}
        lines = []
        if self._diverges(metrics):
            values["alarm/divergence"] = 1.0
            lines += self._raise("divergence", "its own score rises while held-out accuracy falls")
        for name, collapse in COLLAPSE.items():
            now = metrics.get(collapse.metric)
            if now is None:
                continue
            first = self.first.setdefault(collapse.metric, now)
            holds = collapse.holds(now, first)
            values[f"alarm/{name.replace(' ', '_')}"] = float(holds)
            if holds:
                numbers = f"{collapse.metric} {first:.3f} after the first cycle, {now:.3f} now"
                lines += self._raise(name, f"{collapse.what} ({numbers})")
        return values, lines

    def _raise(self, name: str, what: str) -> list[str]:
        """The alarm's line, the first time."""
        if name in self.raised:
            return []
        self.raised.append(name)
        return [f"ALARM {name}: {what}"]

    def _diverges(self, metrics: Mapping[str, float | None]) -> bool:
        high, ago = metrics.get("eval/since_peak/high"), metrics.get("eval/since_peak/cycles")
        if high is None or ago is None or high >= 0:
            return False
        peak = len(self.scores) - int(ago)
        before = [score for row in self.scores[max(0, peak - WINDOW) : peak] for score in row]
        now = [score for row in self.scores[-WINDOW:] for score in row]
        return rose(before, now)

    def keep(self, cycle: int, probes: Probes) -> float | None:
        """Notes how well a cycle did on the probes -> the score that `--keep best` compares.

        That is the mean over the probes, in which a command that is invalid or empty counts as much as
        the lowest score of this cycle or of the run's start: under an unbounded reward it has no score,
        and must not raise the mean by being left out. A cycle in which no command has a score is never
        kept: None.
        """
        if not probes.scores:
            return None
        if self.lowest is None:
            self.lowest = min(probes.scores)
        lowest = min(self.lowest, *probes.scores)
        values = [*probes.scores, *[lowest] * probes.failed]
        self.kept[str(cycle)] = math.fsum(values) / len(values)
        return self.kept[str(cycle)]

    @property
    def best(self) -> int:
        """The cycle to keep: the first with the highest score; 0, the start, if none has a score."""
        best = 0
        for cycle in sorted(map(int, self.kept)):
            if str(best) not in self.kept or self.kept[str(cycle)] > self.kept[str(best)]:
                best = cycle
        return best


def rose(before: Sequence[float], now: Sequence[float], rounds: int = 2000) -> bool:
    """Whether the mean has risen: the 95 % bootstrap interval of the rise is above 0. The tasks differ."""
    if len(before) < 2 or len(now) < 2:
        return False
    rng = np.random.default_rng(0)
    means = []
    for values in (before, now):
        picks = rng.integers(len(values), size=(rounds, len(values)))
        means.append(np.asarray(values)[picks].mean(axis=1))
    return bool(np.quantile(means[1] - means[0], 0.025) > 0)


@dataclass(frozen=True)
class Probes:
    """How the greedy commands for the probe tasks scored.

    Attributes:
        scores: of those that have a score; under a bounded reward a closed gate is a score of 0.
        failed: how many have none because they are empty or a gate is closed. A reward may abstain for
            other reasons: those commands are left out.
    """

    scores: list[float]
    failed: int


def probe(policy: Policy, reward: Reward, tasks: Sequence[Task], max_new_tokens: int, seed: int) -> Probes:
    """Scores greedy commands for fixed tasks, with the base model as inverter where the reward has one.

    The base model cannot share a private code with the policy, and fixed tasks with greedy commands
    differ by the weights alone.
    """
    prompts = [forward_prompt(task) for task in tasks]
    written = policy.generate(prompts, temperature=0.0, max_new_tokens=max_new_tokens)
    commands = [command_in(row[0].text) for row in written]
    twin = with_inverter(reward, "base")
    scores = twin(tasks, [[command] for command in commands], seed=seed_of(seed, "keep"))
    values = []
    failed = 0
    for command, [score] in zip(commands, scores, strict=True):
        if score.value is not None:
            values.append(score.value)
        elif score.closed or not command:
            failed += 1
    return Probes(values, failed)
