"""The held-out evaluation of a run: tasks, numbers and names, the log, the same after an interruption."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from agents.evaluation.answers import Answer, ask, ask_inverse, held_out_cases, record
from agents.evaluation.heldout import JUDGED, WINDOW, HeldOut
from agents.training.run import Run
from envs.prompts import forward_prompt
from envs.schema import EMBEDDED
from envs.source import make_source
from envs.types import Completion, Score, Task
from envs.verify.truth import Case, find_case, verify

SUBSET = {
    "greedy",
    "pass@1",
    "pass@2",
    "reward",
    "reward_minus_truth",
    "best_of_k",
    "auc_within",
    "abstained",
    "invalid",
    "not_executed",
}
SUBSET |= {"exact", "plain", "inverse", "auc", "calibration_error", "risk_area", "distinct"}
SINCE = {"eval/since_peak", "eval/since_peak/high", "eval/since_peak/cycles"}


class Scripted:
    """Writes the reference for the tasks before `right`, nonsense for the others; samples alternate."""

    def __init__(self, cases: Sequence[Case], right: int = 10**9) -> None:
        self.places = {forward_prompt(case.task): place for place, case in enumerate(cases)}
        self.cases, self.right = cases, right
        self.asked: list[Mapping[str, Any]] = []

    def generate(
        self,
        prompts: Sequence[str],
        n: int = 1,
        *,
        temperature: float,
        max_new_tokens: int = 64,
        seed: int = 0,
    ) -> list[list[Completion]]:
        self.asked.append(
            {
                "prompts": len(prompts),
                "n": n,
                "temperature": temperature,
                "max_new_tokens": max_new_tokens,
                "seed": seed,
            }
        )
        places = [self.places[prompt] for prompt in prompts]
        return [
            [Completion(self.command(place, sample if temperature else 0)) for sample in range(n)]
            for place in places
        ]

    def command(self, place: int, sample: int) -> str:
        return self.cases[place].reference if place < self.right and sample % 2 == 0 else "nmap --nonsense"


class Scorer:
    """1 for a command without nonsense, 0 for others."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(
        self, tasks: Sequence[Task], commands: Sequence[Sequence[str]], *, seed: int = 0
    ) -> list[list[Score]]:
        assert len(tasks) == len(commands)
        self.asked.append(len(tasks))
        return [[Score(0.0 if "nonsense" in command else 1.0) for command in row] for row in commands]


def held_out(**changes: Any) -> HeldOut:
    return HeldOut(
        **{
            "domain": "network",
            "tasks": 24,
            "subset": 12,
            "samples": 2,
            "temperature": 0.7,
            "max_new_tokens": 32,
            **changes,
        }
    )


def opened(folder: Path) -> Run:
    return Run.create(folder, {"model": "scripted"}, tensorboard=False)


# ---- the tasks ----


@pytest.mark.parametrize("domain", [*EMBEDDED, "all"])
def test_the_tasks(domain: str) -> None:
    cases = held_out_cases(domain, 300)
    assert held_out_cases(domain, 300) == cases
    assert len({case.task.text for case in cases}) == len(cases) == 300
    assert all(case.reference and case.intent and case.task.id.startswith("heldout/") for case in cases)
    counts = Counter(case.task.domain for case in cases)
    assert counts == dict.fromkeys(EMBEDDED, 100) if domain == "all" else counts == {domain: 300}
    assert 0.35 < sum(case.unseen == "paraphrase" for case in cases) / 300 < 0.65
    assert {case.unseen for case in cases} == {"paraphrase", "values"}
    assert [find_case(case.task) for case in cases[:20]] == cases[:20]


def test_every_intent_is_asked_for() -> None:
    counts = Counter((case.task.domain, case.intent) for case in held_out_cases("all", 300))
    assert min(counts.values()) >= 4 and len(counts) >= 60


def test_no_training_task_is_held_out() -> None:
    evaluation = held_out(domain="all", tasks=300)
    asked = {
        case.task.text for name in ("network", "shell", "sql") for case in held_out_cases(name, 300)
    }  # by `agents.evaluate`
    assert evaluation.texts == asked | {case.task.text for case in evaluation.cases}
    drawn = {
        task.text for seed in range(5) for task in make_source("templates", "all").tasks(300, seed, "cycle")
    }
    assert len(drawn) > 1000 and not drawn & evaluation.texts


def test_fewer_tasks_than_the_subset() -> None:
    evaluation = held_out(tasks=3, subset=72)
    policy = Scripted(evaluation.cases)
    assert evaluation(policy, Scorer(), 0)["eval/greedy"] == 1.0  # type: ignore[arg-type]
    assert [asked["prompts"] for asked in policy.asked] == [3, 1]  # 3 // 4 tasks would be none


# ---- asking ----


def test_answers_belong_to_their_tasks() -> None:
    cases = held_out_cases("network", 8)
    policy, reward = Scripted(cases, right=5), Scorer()
    answers = ask(policy, cases, sampled=3, samples=3, temperature=0.7, max_new_tokens=20, reward=reward)  # type: ignore[arg-type]
    assert [answer.case for answer in answers] == cases
    assert [answer.greedy.verdict.status for answer in answers] == ["correct"] * 5 + ["invalid"] * 3
    assert [answer.greedy.exact for answer in answers] == [True] * 5 + [False] * 3
    assert [len(answer.samples) for answer in answers] == [3, 3, 3, 0, 0, 0, 0, 0]
    for answer in answers[:3]:
        assert [sample.verdict.status for sample in answer.samples] == ["correct", "invalid", "correct"]
        assert [sample.score for sample in answer.samples] == [Score(1.0), Score(0.0), Score(1.0)]
        assert answer.commands == (answer.greedy, *answer.samples) and answer.greedy.score is None
    assert reward.asked == [3]
    assert [(a["prompts"], a["n"], a["temperature"], a["max_new_tokens"]) for a in policy.asked] == [
        (8, 1, 0.0, 20),
        (3, 3, 0.7, 20),
    ]
    unscored = ask(policy, cases, sampled=8, samples=1, temperature=0.7, max_new_tokens=20)  # type: ignore[arg-type]
    assert all(answer.samples[0].score is None for answer in unscored)


def test_the_inverse(policy: Any) -> None:
    mine = Case(Task("file/1", "network", "ping db.test"), "ping db.test")
    answers = ask_inverse(policy, [*held_out_cases("network", 3), mine], 16)
    assert answers[3] is None and set(answers[:3]) <= {True, False}


# ---- numbers ----


def test_the_subset_after_a_cycle() -> None:
    evaluation = held_out(tasks=40, subset=16)
    policy, reward = Scripted(evaluation.cases, right=12), Scorer()
    numbers = evaluation(policy, reward, 1)  # type: ignore[arg-type]
    assert set(numbers) == {f"eval/{name}" for name in SUBSET}
    assert numbers["eval/greedy"] == 12 / 16
    assert (
        numbers["eval/pass@1"] == 0.5
        and numbers["eval/pass@2"] == numbers["eval/auc"] == numbers["eval/best_of_k"] == 1.0
    )
    assert numbers["eval/inverse"] is None  # not asked while a run trains
    assert numbers["eval/invalid"] == pytest.approx(
        (4 * 1 / 3 + 4) / 16
    )  # a sample of each of the first 4, and 4 greedy commands
    assert [asked["prompts"] for asked in policy.asked] == [16, 4] and reward.asked == [4]
    again = held_out(tasks=40, subset=16)
    assert again.cases == evaluation.cases
    assert again(Scripted(again.cases, right=12), Scorer(), 1) == numbers  # type: ignore[arg-type]
    assert evaluation(policy, reward, 1) == numbers  # type: ignore[arg-type]
    assert (
        policy.asked[0] == policy.asked[2] and policy.asked[1] == policy.asked[3]
    )  # with the same seeds, whatever the cycle


def test_all_tasks_with_intervals() -> None:
    evaluation = held_out(tasks=JUDGED + 30)
    policy, reward = Scripted(evaluation.cases, right=65), Scorer()
    numbers = evaluation.whole(policy, reward, 0)  # type: ignore[arg-type]
    ends = {f"eval/{name}/{end}" for name in ("greedy", "pass@1") for end in ("low", "high")}
    assert set(numbers) == {f"eval/{name}" for name in SUBSET} | ends
    greedy, low, high = (numbers[f"eval/greedy{end}"] for end in ("", "/low", "/high"))
    assert (
        greedy == 65 / 130
        and low is not None
        and high is not None
        and 0.38 < low < 0.45
        and 0.55 < high < 0.62
    )
    assert numbers["eval/pass@1"] == pytest.approx(0.25)
    assert reward.asked == [JUDGED]
    assert numbers["eval/abstained"] == 0.0


def test_a_real_policy_twice(policy: Any) -> None:
    evaluation = held_out(tasks=8, subset=8, max_new_tokens=8)
    first = evaluation(policy, Scorer(), 0)
    assert evaluation(policy, Scorer(), 1) == first
    assert all(value is None or 0 <= value <= 1 for value in first.values())


def test_nothing_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    import envs.verify.shell
    import envs.verify.truth

    monkeypatch.setattr(
        envs.verify.shell, "unavailable", lambda: "bubblewrap is not installed: apt-get install bubblewrap"
    )
    envs.verify.truth._verdict.cache_clear()  # what was executed before would be known
    evaluation = held_out(domain="shell")
    for cycle in range(2 * WINDOW + 1):
        numbers = evaluation(Scripted(evaluation.cases), Scorer(), cycle)  # type: ignore[arg-type]
    assert numbers["eval/not_executed"] == 1.0
    assert {
        numbers[f"eval/{name}"] for name in ("greedy", "pass@1", "pass@2", "invalid", "auc", "best_of_k")
    } == {None}
    assert not SINCE & set(numbers)  # nothing is known of any task
    whole = evaluation.whole(Scripted(evaluation.cases), Scorer(), 0)  # type: ignore[arg-type]
    assert whole["eval/greedy"] is whole["eval/greedy/low"] is whole["eval/greedy/high"] is None


def test_the_other_domains_go_on_without_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    import envs.verify.shell
    import envs.verify.truth

    monkeypatch.setattr(
        envs.verify.shell, "unavailable", lambda: "bubblewrap is not installed: apt-get install bubblewrap"
    )
    envs.verify.truth._verdict.cache_clear()  # what was executed before would be known
    evaluation = held_out(domain="shell,network", subset=24)
    numbers = evaluation(Scripted(evaluation.cases), Scorer(), 0)  # type: ignore[arg-type]
    assert numbers["eval/greedy"] == 1.0 and numbers["eval/not_executed"] == pytest.approx(0.5)


# ---- the log, and going on ----


def evaluated(evaluation: HeldOut, cycles: Sequence[int]) -> list[dict[str, float | None]]:
    """A run that gets better until cycle 4 and worse after it."""
    return [
        evaluation(Scripted(evaluation.cases, right=12 - 2 * abs(cycle - 4)), Scorer(), cycle)
        for cycle in cycles
    ]  # type: ignore[arg-type]


def test_the_log(tmp_path: Path) -> None:
    evaluation, run = held_out(), opened(tmp_path / "run")
    evaluation.attach(run)
    evaluated(evaluation, [0, 1])
    evaluation.whole(Scripted(evaluation.cases), Scorer(), 1)  # type: ignore[arg-type]
    run.close()
    rows = [json.loads(line) for line in (tmp_path / "run" / "truth.jsonl").read_text().splitlines()]
    assert [(row["cycle"], row["part"]) for row in rows] == [(0, "subset")] * 12 + [(1, "subset")] * 12 + [
        (1, "whole")
    ] * 24
    assert (
        [row["task_id"] for row in rows[:12]]
        == [row["task_id"] for row in rows[12:24]]
        == [row["task_id"] for row in rows[24:36]]
    )
    assert set(rows[0]) == {
        "cycle",
        "part",
        "task_id",
        "domain",
        "intent",
        "task",
        "reference",
        "greedy",
        "samples",
    }
    assert rows[0]["greedy"] == {"command": evaluation.cases[0].reference, "status": "correct"}
    assert [sample["score"] for sample in rows[0]["samples"]] == [1.0, 0.0]
    assert rows[0]["samples"][1]["status"] == "invalid" and rows[0]["samples"][1]["reason"]
    assert {key for row in rows for item in (row["greedy"], *row["samples"]) for key in item} <= {
        "command",
        "status",
        "reason",
        "score",
    }


def test_the_log_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        evaluation, run = held_out(), opened(tmp_path / name)
        evaluation.attach(run)
        evaluated(evaluation, range(3))
        run.close()
    assert (tmp_path / "a" / "truth.jsonl").read_bytes() == (tmp_path / "b" / "truth.jsonl").read_bytes()


def test_a_record_holds_what_differed() -> None:
    case = held_out_cases("network", 1)[0]
    answer = ask(Scripted([case]), [case], sampled=1, samples=2, temperature=1.0, max_new_tokens=9)[0]  # type: ignore[arg-type]
    wrong = verify([case.task], ["ping nowhere.test"])[0]
    row = record(Answer(case, type(answer.greedy)("ping nowhere.test", wrong, False)))
    assert row["greedy"] == {
        "command": "ping nowhere.test",
        "status": "wrong",
        "reason": wrong.reason,
        "differed": wrong.differed,
    }
    assert row["samples"] == [] and json.loads(json.dumps(row)) == row
    assert "score" not in record(answer)["samples"][0]  # no reward was asked


def test_truth_since_its_peak() -> None:
    numbers = evaluated(held_out(), range(9))
    assert [set(row) >= SINCE for row in numbers] == [cycle >= 2 * WINDOW - 1 for cycle in range(9)]
    last = numbers[-1]
    # Right after each cycle: 4 6 8 10 12 10 8 6 4 of 12; the best three before the last are cycles 3 to 5.
    assert (
        last["eval/since_peak"] == pytest.approx((6 - 32 / 3) / 12) and last["eval/since_peak/cycles"] == 3.0
    )
    high = last["eval/since_peak/high"]
    assert high is not None and last["eval/since_peak"] < high


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_interrupted_equals_uninterrupted(tmp_path: Path, stop: int) -> None:
    straight = evaluated(held_out(), range(9))
    run = opened(tmp_path / "run")
    first = held_out()
    first.attach(run)
    evaluated(first, range(stop))
    first.whole(Scripted(first.cases), Scorer(), 0)  # type: ignore[arg-type]
    run.commit(stop - 1, {}, lambda folder: None)
    evaluated(first, [stop])  # killed before the next checkpoint
    run.close()
    run, _ = Run.open(tmp_path / "run", tensorboard=False)
    run.restore()
    second = held_out()
    second.attach(run)
    assert evaluated(second, range(stop, 9)) == straight[stop:]
    run.close()


def test_what_a_later_cycle_was_is_not_looked_at() -> None:
    evaluation = held_out()
    numbers = evaluated(evaluation, range(9))
    assert evaluated(evaluation, [6])[0] == numbers[6]
