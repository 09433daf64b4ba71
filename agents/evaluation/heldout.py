"""Held-out tasks, what a policy answers to them, and what is true of the answers.

Trainers are handed a `HeldOut` by `agents.training.session` through a name in a string; they call it and log the numbers that come
back. Verdicts stay here and in the run's truth.jsonl, which no training code reads.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from envs.domain import domain_names, load_domain
from envs.source import Templates
from envs.types import Reward, Score
from envs.verify.truth import Case, find_case, reconstruction_match, verify
from envs.verify.verdict import Verdict

if TYPE_CHECKING:
    from agents.policy.policy import Policy
    from agents.training.run import Run

A_DOMAIN = 300  # tasks of a domain that `agents.evaluate` asks by default
SAMPLED = (
    4  # after a cycle, one task in so many is sampled and scored as well: reading back is dearer than writing
)
JUDGED = 100  # tasks of a whole evaluation within a run whose samples the reward scores
WINDOW = 3  # evaluations whose mean is compared when truth is asked whether it fell


@dataclass(frozen=True)
class Judged:
    """One command with what is true of it. `exact`: it equals the reference but for white space."""

    command: str
    verdict: Verdict
    exact: bool
    score: Score | None = None


@dataclass(frozen=True)
class Answer:
    """What a policy made of one task. `inverse`: whether it read the reference back rightly, where that was asked."""

    case: Case
    greedy: Judged
    samples: tuple[Judged, ...] = ()
    inverse: bool | None = None

    @property
    def commands(self) -> tuple[Judged, ...]:
        """The greedy command and the samples."""
        return (self.greedy, *self.samples)


def held_out_cases(domain: str, tasks: int) -> list[Case]:
    """Held-out tasks with what is right for them, spread evenly over the domains; the same for every run, seed and model."""
    drawn = Templates([load_domain(name) for name in domain_names(domain)], "heldout").tasks(
        tasks, "held-out"
    )
    return [case for case in map(find_case, drawn) if case is not None]


def ask(
    policy: Policy,
    cases: Sequence[Case],
    *,
    sampled: int,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    reward: Reward | None = None,
) -> list[Answer]:
    """Greedy commands for all tasks, and `samples` sampled ones, scored by the reward, for the first `sampled`; all verified.

    The random streams are always the same, so that two policies differ by their weights alone.
    """
    from agents.policy.seeds import seed_of
    from envs.prompts import forward_prompt

    prompts = [forward_prompt(case.task) for case in cases]
    greedy_P = [
        row[0].text for row in policy.generate(prompts, temperature=0.0, max_new_tokens=max_new_tokens)
    ]
    written_P_G = policy.generate(
        prompts[:sampled],
        samples,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seed=seed_of("evaluation"),
    )
    commands_P_G = [[completion.text for completion in row] for row in written_P_G]
    scores_P_G: Sequence[Sequence[Score | None]] = [[None] * len(row) for row in commands_P_G]
    if reward is not None:
        tasks = [case.task for case in cases[:sampled]]
        scores_P_G = reward(tasks, commands_P_G, seed=seed_of("evaluation reward"))
    pairs = [(case, command) for case, command in zip(cases, greedy_P, strict=True)]
    pairs += [(case, command) for case, row in zip(cases, commands_P_G, strict=False) for command in row]
    verdicts = verify(
        [case.task for case, _ in pairs], [command for _, command in pairs], [case for case, _ in pairs]
    )
    judged = [
        Judged(command, verdict, command.split() == case.reference.split())
        for (case, command), verdict in zip(pairs, verdicts, strict=True)
    ]
    answers, rest = [], iter(judged[len(cases) :])
    for place, case in enumerate(cases):
        row = scores_P_G[place] if place < sampled else []
        scored = tuple(
            Judged(item.command, item.verdict, item.exact, score)
            for score, item in zip(row, rest, strict=False)
        )
        answers.append(Answer(case, judged[place], scored))
    return answers


def read_back(policy: Policy, cases: Sequence[Case], max_new_tokens: int = 64) -> list[bool | None]:
    """Whether the policy, greedily, says of each reference command what its task says; None for tasks that are not of a grammar."""
    from rewards.inversion import reconstruct

    texts = reconstruct(policy, [(case.task, case.reference) for case in cases], 0.0, 0, max_new_tokens)
    return [reconstruction_match(case.task, text) for case, text in zip(cases, texts, strict=True)]


@dataclass
class HeldOut:
    """Held-out truth for a run, as numbers.

    Args:
        domain: as in the command's flag.
        tasks: how many in a whole evaluation, spread evenly over the domains.
        subset: how many of them after each cycle.
        samples: commands sampled for a task, the K of pass@K.
    """

    domain: str
    tasks: int
    subset: int
    samples: int
    temperature: float
    max_new_tokens: int
    cases: list[Case] = field(init=False)
    note: str = field(
        default="", init=False
    )  # for the user: how many commands of the last whole evaluation were not executed, and why
    _run: Run | None = field(default=None, init=False)
    _greedy: dict[int, list[float | None]] = field(
        default_factory=dict, init=False
    )  # cycle -> is it right, for each task of the subset

    def __post_init__(self) -> None:
        self.cases = held_out_cases(self.domain, self.tasks)
        self.subset = min(self.subset, self.tasks)

    @property
    def texts(self) -> frozenset[str]:
        """The sentences that no training task may have: those of the run's evaluation, and those that `agents.evaluate` asks by default."""
        asked = [case for name in domain_names(self.domain) for case in held_out_cases(name, A_DOMAIN)]
        return frozenset(case.task.text for case in (*self.cases, *asked))

    def attach(self, run: Run) -> None:
        """Logs to a run, after it was restored, and remembers what was evaluated before the run was interrupted."""
        self._run = run
        path = run.folder / "truth.jsonl"
        if path.is_file():
            with path.open(encoding="utf-8") as lines:
                for row in map(json.loads, lines):
                    if row["part"] == "subset":
                        self._greedy.setdefault(row["cycle"], []).append(_value(row["greedy"]["status"]))

    def __call__(self, policy: Policy, reward: Reward, cycle: int) -> dict[str, float | None]:
        """The fixed subset, after a cycle: `eval/greedy` on all of it, the rest on a quarter; and whether truth fell (`since_peak`)."""
        sampled = max(1, self.subset // SAMPLED)
        answers = self._ask(policy, self.cases[: self.subset], sampled, reward)
        self._log(answers, cycle, "subset")
        self._greedy[cycle] = [_value(answer.greedy.verdict.status) for answer in answers]
        return {**self._numbers(answers), **self._since_peak(cycle)}

    def whole(self, policy: Policy, reward: Reward, cycle: int) -> dict[str, float | None]:
        """All tasks, before the first cycle and after the last, with 95 % intervals; the reward on the first 100."""
        scored, unscored = self.cases[:JUDGED], self.cases[JUDGED:]
        answers = self._ask(policy, scored, len(scored), reward)
        answers += self._ask(policy, unscored, len(unscored), None) if unscored else []
        self._log(answers, cycle, "whole")
        self.note = not_executed([judged.verdict for answer in answers for judged in answer.commands])
        return self._numbers(answers, intervals=True)

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

    def _numbers(self, answers: Sequence[Answer], intervals: bool = False) -> dict[str, float | None]:
        from agents.evaluation.statistics import ROUNDS, estimates, mean_estimate, resamples, table

        found = estimates(answers, self.samples, rounds=0)
        numbers: dict[str, float | None] = {
            f"eval/{name}": estimate.value for name, estimate in found.items()
        }
        columns, picks = table(answers, self.samples).means_P, resamples(len(answers), ROUNDS)
        for name in ("greedy", "pass@1") if intervals else ():
            estimate = mean_estimate(columns[name], picks)
            numbers |= {f"eval/{name}/low": estimate.low, f"eval/{name}/high": estimate.high}
        return numbers

    def _since_peak(self, cycle: int) -> dict[str, float | None]:
        """How greedy truth changed since the best window before: `eval/since_peak`, the upper end of its interval, and when it was best."""
        from agents.evaluation.statistics import fall_since_peak

        found = fall_since_peak(
            [self._greedy[known] for known in sorted(self._greedy) if known <= cycle], WINDOW
        )
        if found is None:
            return {}
        change, high, ago = found
        return {"eval/since_peak": change, "eval/since_peak/high": high, "eval/since_peak/cycles": float(ago)}

    def _log(self, answers: Iterable[Answer], cycle: int, part: str) -> None:
        if self._run is not None:
            self._run.append(
                "truth", [{"cycle": cycle, "part": part, **record(answer)} for answer in answers]
            )


def not_executed(verdicts: Sequence[Verdict]) -> str:
    """A line for the user: how many commands were not executed, and why, the most frequent reason first; empty where all were."""
    reasons = Counter(
        verdict.reason for verdict in verdicts if verdict.status == "not_executed"
    ).most_common()
    if not reasons:
        return ""
    more = f" (and {len(reasons) - 1} other reasons)" if len(reasons) > 1 else ""
    return f"{sum(count for _, count in reasons)} of {len(verdicts)} commands were not executed and count neither way: {reasons[0][0]}{more}"


def record(answer: Answer) -> dict[str, Any]:
    """An answer as a line of truth.jsonl; times are left out, so that the same seed writes the same bytes."""

    def plain(judged: Judged) -> dict[str, Any]:
        row: dict[str, Any] = {"command": judged.command, "status": judged.verdict.status}
        row |= {
            name: value
            for name, value in (("reason", judged.verdict.reason), ("differed", judged.verdict.differed))
            if value
        }
        return row | ({} if judged.score is None else {"score": judged.score.value})

    case = answer.case
    return {
        "task_id": case.task.id,
        "domain": case.task.domain,
        "task": case.task.text,
        "reference": case.reference,
        "greedy": plain(answer.greedy),
        "samples": [plain(judged) for judged in answer.samples],
    }


def _value(status: str) -> float | None:
    return None if status == "not_executed" else float(status == "correct")
