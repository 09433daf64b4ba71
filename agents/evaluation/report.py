"""Answers of one or more models -> the report as plain values, which the page, the JSON and the terminal show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agents.evaluation.heldout import Answer
from agents.evaluation.paired import Difference, difference
from agents.evaluation.statistics import bins, estimates, risk_coverage, table
from envs.schema import EMBEDDED
from envs.verify.truth import Case, how_verified
from envs.verify.verdict import Verdict

EXAMPLES = 10
BY_INTENT = 300  # resamples for the AUC and its like of one intent, of which there are many


def make_report(
    settings: Mapping[str, Any], k: int, subjects: Sequence[tuple[Mapping[str, Any], Sequence[Answer]]]
) -> dict[str, Any]:
    """Everything as plain values: what report.json holds.

    Args:
        settings: what all subjects were measured with.
        k: samples of each task.
        subjects: (name, model and adapter; what it made of the tasks) of each; all but the first are compared with the first.
    """
    first, answers = subjects[0]
    cases = [answer.case for answer in answers]
    return {
        "settings": dict(settings),
        "tasks": len(cases),
        "k": k,
        "truth": {name: how_verified(name) for name in dict.fromkeys(case.task.domain for case in cases)},
        "subjects": [{**about, **describe(rows, k)} for about, rows in subjects],
        "comparisons": [
            {"first": first["name"], "second": about["name"], **compare(answers, rows, k)}
            for about, rows in subjects[1:]
        ],
    }


def describe(answers: Sequence[Answer], k: int) -> dict[str, Any]:
    """One subject: all metrics over all tasks, each domain, each kind of unseen tasks and each intent; curves; what went wrong."""
    laid = table(answers, k)
    return {
        "all": _estimates(answers, k),
        "domains": {
            name: _estimates(part, k)
            for name, part in _parts(answers, lambda case: _shown(case.task.domain)).items()
        },
        "unseen": {
            name: _estimates(part, k) for name, part in _parts(answers, lambda case: case.unseen).items()
        },
        "intents": {
            name: _estimates(part, k, curves=BY_INTENT) for name, part in _parts(answers, _intent).items()
        },
        "risk_coverage": [
            {"coverage": coverage, "risk": risk, "score": score}
            for coverage, risk, score in risk_coverage(laid.truths_P_G, laid.scores_P_G)
        ],
        "calibration": [
            {"score": score, "right": right, "samples": size}
            for score, right, size in bins(laid.truths_P_G, laid.scores_P_G)
        ],
        "best_of_k": _plain(difference(laid.means_P["greedy"], laid.means_P["best_of_k"]))
        if laid.scores_P_G.shape[1] > 1
        else None,
        "reasons": _reasons(answers),
        "not_executed": sum(
            judged.verdict.status == "not_executed" for answer in answers for judged in answer.commands
        ),
        "exact_but": _against_exact(answers),
        "failures": [
            _example(answer) for (answer,) in _some([(answer,) for answer in answers if _failed(answer)])
        ],
    }


def _estimates(answers: Sequence[Answer], k: int, curves: int | None = None) -> dict[str, Any]:
    return {name: asdict(estimate) for name, estimate in estimates(answers, k, curves=curves).items()}


def _parts(answers: Sequence[Answer], key: Any) -> dict[str, list[Answer]]:
    parts: dict[str, list[Answer]] = {}
    for answer in answers:
        if name := key(answer.case):
            parts.setdefault(name, []).append(answer)
    return parts


def _shown(domain: str) -> str:
    return domain if domain in EMBEDDED else Path(domain).stem


def _intent(case: Case) -> str:
    return f"{_shown(case.task.domain)}: {case.intent}" if case.intent else ""


def _reasons(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Why greedy commands are not correct, and why any command was not executed, the most frequent reasons first."""
    counts: dict[tuple[str, str, str], int] = {}
    for answer in answers:
        for judged in answer.commands:
            verdict = judged.verdict
            if verdict.status == "correct" or (
                judged is not answer.greedy and verdict.status != "not_executed"
            ):
                continue
            key = (_shown(answer.case.task.domain), verdict.status, verdict.reason)
            counts[key] = counts.get(key, 0) + 1
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [{"domain": d, "status": s, "reason": r, "count": n} for (d, s, r), n in ranked[:30]]


def _against_exact(answers: Sequence[Answer]) -> dict[str, dict[str, int]]:
    """By domain: different pairs of task and command, and how many of those that do not equal the reference are right all the same."""
    found: dict[str, dict[str, int]] = {}
    for name, part in _parts(answers, lambda case: _shown(case.task.domain)).items():
        pairs = {
            (answer.case.task.id, judged.command): judged for answer in part for judged in answer.commands
        }
        known = [judged for judged in pairs.values() if judged.verdict.status != "not_executed"]
        found[name] = {
            "commands": len(known),
            "exact": sum(judged.exact for judged in known),
            "right but not exact": sum(judged.verdict.correct and not judged.exact for judged in known),
            "exact but not right": sum(judged.exact and not judged.verdict.correct for judged in known),
        }
    return found


def _failed(answer: Answer) -> bool:
    return answer.greedy.verdict.status in ("wrong", "invalid")


def _some(rows: Sequence[tuple[Answer, ...]]) -> list[tuple[Answer, ...]]:
    """The first few answers or pairs of answers, of each domain in turn."""
    ranked, seen = [], Counter[str]()
    for row in rows:
        domain = row[0].case.task.domain
        ranked.append((seen[domain], row))
        seen[domain] += 1
    return [row for _, row in sorted(ranked, key=lambda pair: pair[0])[:EXAMPLES]]


def _example(answer: Answer) -> dict[str, str]:
    verdict = answer.greedy.verdict
    return {
        "task": answer.case.task.text,
        "reference": answer.case.reference,
        "command": answer.greedy.command,
        "status": verdict.status,
        "reason": verdict.reason,
        "differed": verdict.differed,
    }


def compare(first: Sequence[Answer], second: Sequence[Answer], k: int) -> dict[str, Any]:
    """Two subjects, paired by task: over all, by domain, by unseen part, by intent; which tasks were gained and lost, examples of each."""
    pairs = list(zip(first, second, strict=True))
    gained = _some([pair for pair in pairs if _failed(pair[0]) and pair[1].greedy.verdict.correct])
    lost = _some([pair for pair in pairs if pair[0].greedy.verdict.correct and _failed(pair[1])])
    return {
        "all": _differences(first, second, k),
        "domains": _by_part(first, second, k, lambda case: _shown(case.task.domain)),
        "unseen": _by_part(first, second, k, lambda case: case.unseen),
        "intents": _by_part(first, second, k, _intent),
        "gained": [_moved(before, after, before.greedy.verdict) for before, after in gained],
        "lost": [_moved(before, after, after.greedy.verdict) for before, after in lost],
    }


def _moved(before: Answer, after: Answer, failed: Verdict) -> dict[str, str]:
    return {
        "before": before.greedy.command,
        **_example(after),
        "why": failed.reason,
        "before_differed": before.greedy.verdict.differed,
    }


def _by_part(first: Sequence[Answer], second: Sequence[Answer], k: int, key: Any) -> dict[str, Any]:
    left, right = _parts(first, key), _parts(second, key)
    return {name: _differences(left[name], right[name], k) for name in left}


def _differences(first: Sequence[Answer], second: Sequence[Answer], k: int) -> dict[str, Any]:
    left, right = table(first, k).means_P, table(second, k).means_P
    found = {
        name: difference(left[name], right[name])
        for name in ("greedy", "pass@1", f"pass@{k}", "inverse", "reward")
        if name in left
    }
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: Difference) -> dict[str, Any]:
    return {**asdict(value), "verdict": value.verdict}
