"""Answers of one or more models -> a report as plain values, for the page, the JSON and the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agents.evaluation.answers import Answer
from agents.evaluation.headroom import headroom
from agents.evaluation.paired import Difference, difference
from agents.evaluation.statistics import Table, bins, estimates, risk_coverage, table
from envs.schema import EMBEDDED
from envs.verify.truth import Case, how_verified
from envs.verify.verdict import Verdict

EXAMPLES = 10
REASONS = 30
BY_INTENT = 300  # resamples for the AUC and its like of one intent, of which there are many
Pair = tuple[Answer, Answer]


def make_report(
    settings: Mapping[str, Any],
    k: int,
    subjects: Sequence[tuple[Mapping[str, Any], Sequence[Answer]]],
    references: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything as plain values: what report.json holds.

    Args:
        settings: what all subjects were measured with.
        k: samples of each task.
        subjects: (name, model, adapter, labels used, the selection of a run; its answers) of each; all but
            the first are compared with the first.
        references: of a file's tasks, how many can be judged.
    """
    about, first = subjects[0]
    domains = dict.fromkeys(answer.case.task.domain for answer in first)
    described = []
    comparisons = []
    for place, (facts, answers) in enumerate(subjects):
        described.append({"selection": None, **facts, **describe(answers, k)})
        if place > 0:
            names = {"first": about["name"], "second": facts["name"]}
            comparisons.append({**names, **compare(first, answers, k)})
    return {
        "settings": dict(settings),
        "tasks": len(first),
        "k": k,
        "references": references,
        "truth": {name: how_verified(name) for name in domains},
        "subjects": described,
        "comparisons": comparisons,
    }


# ---- one subject ----


def describe(answers: Sequence[Answer], k: int) -> dict[str, Any]:
    """One subject: all metrics over all tasks and over each part of them, curves, and what went wrong."""
    laid = table(answers, k)
    skipped = 0
    failed = []
    for answer in answers:
        skipped += sum(judged.verdict.status == "not_executed" for judged in answer.commands)
        if _failed(answer):
            failed.append((answer, answer))
    return {
        "all": _estimates(answers, k),
        "domains": _estimates_by(_domain, answers, k),
        "sources": _by_source(_estimates_by(_source, answers, k)),
        "unseen": _estimates_by(_unseen, answers, k),
        "intents": _estimates_by(_intent, answers, k, curves=BY_INTENT),
        **_curves(laid),
        "best_of_k": _best_of_k(laid),
        "headroom": headroom(answers, k) if answers and answers[0].scores else None,
        "reasons": _reasons(answers),
        "not_executed": skipped,
        "exact_but": _against_exact(answers),
        "failures": [_example(answer) for _, answer in _from_each_domain(failed)],
    }


def _estimates(answers: Sequence[Answer], k: int, curves: int | None = None) -> dict[str, Any]:
    return {name: asdict(estimate) for name, estimate in estimates(answers, k, curves=curves).items()}


def _estimates_by(
    key: Callable[[Case], str], answers: Sequence[Answer], k: int, curves: int | None = None
) -> dict[str, Any]:
    return {name: _estimates(part, k, curves) for name, part in _parts(answers, key).items()}


def _parts(answers: Sequence[Answer], key: Callable[[Case], str]) -> dict[str, list[Answer]]:
    """The answers by a property of their case; those whose property is empty are left out."""
    parts: dict[str, list[Answer]] = {}
    for answer in answers:
        name = key(answer.case)
        if name:
            parts.setdefault(name, []).append(answer)
    return parts


def _domain(case: Case) -> str:
    name = case.task.domain
    return name if name in EMBEDDED else Path(name).stem


def _source(case: Case) -> str:
    """The first word of a source; what follows may say where in it."""
    return case.source.partition(" ")[0]


def _by_source(parts: dict[str, Any]) -> dict[str, Any]:
    """Parts by source where there are several."""
    return parts if len(parts) > 1 else {}


def _unseen(case: Case) -> str:
    return case.unseen


def _intent(case: Case) -> str:
    return f"{_domain(case)}: {case.intent}" if case.intent else ""


def _curves(laid: Table) -> dict[str, Any]:
    risks = []
    for coverage, risk, score in risk_coverage(laid.right_P_G, laid.scores_P_G):
        risks.append({"coverage": coverage, "risk": risk, "score": score})
    groups = []
    for score, right, size in bins(laid.right_P_G, laid.scores_P_G):
        groups.append({"score": score, "right": right, "samples": size})
    return {"risk_coverage": risks, "calibration": groups}


def _best_of_k(laid: Table) -> dict[str, Any] | None:
    """The reward's choice among the samples against the greedy command; None where there is no choice."""
    if laid.scores_P_G.shape[1] < 2:
        return None
    return _plain(difference(laid.means_P["greedy"], laid.means_P["best_of_k"]))


def _reasons(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Why greedy commands are not correct, and why any were not executed, the most frequent reasons first."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for answer in answers:
        for judged in answer.commands:
            verdict = judged.verdict
            is_failure = judged is answer.greedy and verdict.status != "correct"
            if is_failure or verdict.status == "not_executed":
                counts[_domain(answer.case), verdict.status, verdict.reason] += 1
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = []
    for (domain, status, reason), count in ranked[:REASONS]:
        rows.append({"domain": domain, "status": status, "reason": reason, "count": count})
    return rows


def _against_exact(answers: Sequence[Answer]) -> dict[str, dict[str, int]]:
    """By domain: distinct pairs of task and command, and how often verdict and exact match disagree."""
    found: dict[str, dict[str, int]] = {}
    for name, part in _parts(answers, _domain).items():
        pairs = {}
        for answer in part:
            for judged in answer.commands:
                pairs[answer.case.task.id, judged.command] = judged
        counts = dict.fromkeys(("commands", "exact", "right but not exact", "exact but not right"), 0)
        for judged in pairs.values():
            if judged.verdict.status == "not_executed":
                continue
            counts["commands"] += 1
            counts["exact"] += judged.exact
            counts["right but not exact"] += judged.verdict.correct and not judged.exact
            counts["exact but not right"] += judged.exact and not judged.verdict.correct
        found[name] = counts
    return found


def _failed(answer: Answer) -> bool:
    return answer.greedy.verdict.status in ("wrong", "invalid")


def _from_each_domain(pairs: Sequence[Pair]) -> list[Pair]:
    """The first few, of each domain in turn."""
    ranked = []
    seen: Counter[str] = Counter()
    for pair in pairs:
        domain = pair[0].case.task.domain
        ranked.append((seen[domain], pair))
        seen[domain] += 1
    ranked.sort(key=lambda item: item[0])
    return [pair for _, pair in ranked[:EXAMPLES]]


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


# ---- two subjects ----


def compare(first: Sequence[Answer], second: Sequence[Answer], k: int) -> dict[str, Any]:
    """Two subjects, paired by task: over all tasks and each part; examples of tasks gained and lost."""
    gained, lost = [], []
    for pair in zip(first, second, strict=True):
        before, after = pair
        if _failed(before) and after.greedy.verdict.correct:
            gained.append(pair)
        elif before.greedy.verdict.correct and _failed(after):
            lost.append(pair)
    return {
        "all": _differences(first, second, k),
        "domains": _differences_by(_domain, first, second, k),
        "sources": _by_source(_differences_by(_source, first, second, k)),
        "unseen": _differences_by(_unseen, first, second, k),
        "intents": _differences_by(_intent, first, second, k),
        "gained": [_moved(pair, pair[0].greedy.verdict) for pair in _from_each_domain(gained)],
        "lost": [_moved(pair, pair[1].greedy.verdict) for pair in _from_each_domain(lost)],
    }


def _moved(pair: Pair, failed: Verdict) -> dict[str, str]:
    before, after = pair
    return {
        "before": before.greedy.command,
        **_example(after),
        "why": failed.reason,
        "before_differed": before.greedy.verdict.differed,
    }


def _differences_by(
    key: Callable[[Case], str], first: Sequence[Answer], second: Sequence[Answer], k: int
) -> dict[str, Any]:
    left, right = _parts(first, key), _parts(second, key)
    return {name: _differences(left[name], right[name], k) for name in left}


def _differences(first: Sequence[Answer], second: Sequence[Answer], k: int) -> dict[str, Any]:
    left, right = table(first, k).means_P, table(second, k).means_P
    names = ("greedy", "pass@1", f"pass@{k}", "inverse", "reward")
    return {name: _plain(difference(left[name], right[name])) for name in names}


def _plain(value: Difference) -> dict[str, Any]:
    return {**asdict(value), "verdict": value.verdict}
