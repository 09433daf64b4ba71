"""The held-out evaluation of a run: numbers after each cycle, with intervals at the start and the end.

A command hands a `HeldOut` to its trainer, which calls it and logs the numbers that come back. Verdicts stay
here and in the run's truth.jsonl, which no training code reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agents.evaluation.answers import Answer, ask, held_out_cases, not_executed, record
from agents.evaluation.bootstrap import ROUNDS, resamples
from agents.evaluation.metrics import correctness
from agents.evaluation.selection import measure_selection
from agents.evaluation.shots import draw_shots
from agents.evaluation.statistics import estimates, fall_since_peak, mean_estimate, table
from envs.domain import domain_names
from envs.types import Reward
from envs.verify.truth import Case

if TYPE_CHECKING:
    from agents.policy.policy import Policy
    from agents.training.run import Run

A_DOMAIN = 300  # tasks per domain that `agents.evaluate` asks by default
SAMPLED = 4  # after a cycle, every fourth task is sampled and scored as well: scoring costs more than writing
JUDGED = 100  # tasks of a whole evaluation within a run whose samples the reward scores
WINDOW = 3  # evaluations over which greedy accuracy is averaged to see whether it fell
WITH_INTERVALS = ("greedy", "pass@1")


@dataclass
class HeldOut:
    """Held-out accuracy of a run, as numbers.

    Args:
        domain: as in the command's flag.
        tasks: how many in a whole evaluation, spread evenly over the domains.
        subset: how many of them after each cycle.
        samples: commands sampled per task, the K of pass@K.

    Attributes:
        note: for the user: how many commands of the last whole evaluation could not be executed, and why.
    """

    domain: str
    tasks: int
    subset: int
    samples: int
    temperature: float
    max_new_tokens: int
    cases: list[Case] = field(init=False)
    note: str = field(default="", init=False)
    _run: Run | None = field(default=None, init=False)
    # Cycle -> correctness of the greedy command for each task of the subset.
    _greedy: dict[int, list[float | None]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.cases = held_out_cases(self.domain, self.tasks)
        self.subset = min(self.subset, self.tasks)

    @property
    def texts(self) -> frozenset[str]:
        """Sentences that no training task may have: those asked here, and by `agents.evaluate` by default."""
        asked = list(self.cases)
        for name in domain_names(self.domain):
            asked += held_out_cases(name, A_DOMAIN)
        return frozenset(case.task.text for case in asked)

    def shots(self, count: int) -> dict[tuple[str, str], list[tuple[str, str]]]:
        """Labelled examples of each domain, to stand before its prompts: see `agents.evaluation.shots`."""
        return draw_shots(self.domain, count)

    def attach(self, run: Run) -> None:
        """Logs to a run, and recalls what it evaluated before it was interrupted. Call it after a restore."""
        self._run = run
        path = run.folder / "truth.jsonl"
        if not path.is_file():
            return
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                if row["part"] == "subset":
                    values = self._greedy.setdefault(row["cycle"], [])
                    values.append(correctness(row["greedy"]["status"]))

    def __call__(self, policy: Policy, reward: Reward, cycle: int) -> dict[str, float | None]:
        """The fixed subset, after a cycle: greedy on all of it, samples on a quarter; did accuracy fall?"""
        sampled = max(1, self.subset // SAMPLED)
        answers = self._ask(policy, self.cases[: self.subset], sampled, reward)
        self._log(answers, cycle, "subset")
        self._greedy[cycle] = [correctness(answer.greedy.verdict.status) for answer in answers]
        return {**self._numbers(answers), **self._since_peak(cycle)}

    def whole(self, policy: Policy, reward: Reward, cycle: int) -> dict[str, float | None]:
        """All tasks, at the start and the end, with 95 % intervals; the reward on the first 100."""
        scored, unscored = self.cases[:JUDGED], self.cases[JUDGED:]
        answers = self._ask(policy, scored, len(scored), reward)
        if unscored:
            answers += self._ask(policy, unscored, len(unscored), None)
        self._log(answers, cycle, "whole")

        verdicts = []
        for answer in answers:
            verdicts += [judged.verdict for judged in answer.commands]
        self.note = not_executed(verdicts)

        numbers = self._numbers(answers)
        columns, picks = table(answers, self.samples).means_P, resamples(len(answers), ROUNDS)
        for name in WITH_INTERVALS:
            estimate = mean_estimate(columns[name], picks)
            numbers[f"eval/{name}/low"] = estimate.low
            numbers[f"eval/{name}/high"] = estimate.high
        return numbers

    def afterwards(self) -> str:
        """Where a run that has ended chose well and did not get better, a line that says so."""
        found = measure_selection(self._run.folder) if self._run is not None else None
        return found["line"] if found else ""

    def _ask(
        self, policy: Policy, cases: Sequence[Case], sampled: int, reward: Reward | None
    ) -> list[Answer]:
        return ask(
            policy,
            cases,
            sampled=sampled,
            samples=self.samples,
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
            reward=reward,
        )

    def _numbers(self, answers: Sequence[Answer]) -> dict[str, float | None]:
        found = estimates(answers, self.samples, rounds=0)
        return {f"eval/{name}": estimate.value for name, estimate in found.items()}

    def _since_peak(self, cycle: int) -> dict[str, float | None]:
        """How greedy accuracy changed since the best earlier window, its upper bound, the window's age."""
        history = [self._greedy[known] for known in sorted(self._greedy) if known <= cycle]
        found = fall_since_peak(history, WINDOW)
        if found is None:
            return {}
        change, high, ago = found
        return {"eval/since_peak": change, "eval/since_peak/high": high, "eval/since_peak/cycles": float(ago)}

    def _log(self, answers: Sequence[Answer], cycle: int, part: str) -> None:
        if self._run is not None:
            rows = [{"cycle": cycle, "part": part, **record(answer)} for answer in answers]
            self._run.append("truth", rows)
