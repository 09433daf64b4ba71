"""One model on all tasks: it and its reward are loaded, and its answers judged in both directions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents.evaluation.answers import Answer, ask, ask_inverse, held_out_cases
from agents.evaluation.headroom import scored
from agents.evaluation.shots import draw_shots
from agents.policy.chat import read_options
from agents.policy.load import load_policy
from envs.domain import domain_names
from envs.source import make_source
from envs.verify.truth import Case, read_cases, verify
from rewards.labelled import Truth
from rewards.registry import POOL, make_reward, reward_info, shown


def cases_of(domains: str, tasks: int, tasks_file: str | None) -> list[Case]:
    """Held-out tasks of each domain, or those of a file, whose lines may name one of the domains.

    Raises:
        InputError: the file is faulty.
    """
    if tasks_file is not None:
        return read_cases(Path(tasks_file), domains)
    cases = []
    for name in domain_names(domains):
        cases += held_out_cases(name, tasks)
    return cases


def judgeable(cases: Sequence[Case]) -> dict[str, Any]:
    """How many tasks of a file can be judged, as plain values: whose reference is right by its own measure.

    Returns:
        `tasks`, `judged`, `own`: those with a tree or database of their own, and `reasons`: why the others
        cannot be judged, the most frequent first, with the line of the first such task and what it said.
    """
    verdicts = verify([case.task for case in cases], [case.reference for case in cases], cases)
    counts: Counter[str] = Counter()
    first: dict[str, tuple[str, str]] = {}
    for case, verdict in zip(cases, verdicts, strict=True):
        if not verdict.correct:
            said = verdict.reason.removesuffix(f": {case.reference}")
            reason, _, example = said.partition(": ")
            counts[reason] += 1
            first.setdefault(reason, (case.task.id.removeprefix("file/"), example))
    rows = []
    for reason, count in counts.most_common():
        line, example = first[reason]
        rows.append({"reason": reason, "tasks": count, "line": line, "example": example})
    own = sum(case.given is not None for case in cases)
    return {"tasks": len(cases), "judged": len(cases) - counts.total(), "own": own, "reasons": rows}


def measure(
    model: str,
    adapter: str | None,
    cases: Sequence[Case],
    settings: Mapping[str, Any],
    *,
    samples: int,
    start: str | None,
    load_in_4bit: bool = False,
    dtype: str = "auto",
    threads: int | None = None,
) -> list[Answer]:
    """What a model makes of the tasks.

    Args:
        settings: what all subjects of a report are measured with; the keys are flags of `agents.evaluate`,
            and `choosing`: the rewards that choose among the greedy command and the samples, or none.
        start: the adapter with which the run of `adapter` began.

    Raises:
        InputError: the model or the adapter cannot be loaded.
    """
    names = settings["choosing"] or [settings["reward"]]
    policy = load_policy(
        model,
        adapter=adapter,
        load_in_4bit=load_in_4bit,
        dtype=dtype,
        threads=threads,
        chat_options=read_options(settings["chat_template_kwargs"]),
    )
    policy.tokens.prefill = settings["prefill"]
    policy.tokens.shots = draw_shots(settings["domain"], settings["shots"])
    if start and any(reward_info(name).needs_start for name in names):
        policy.load_start(Path(start).expanduser())
    pool = make_source("templates", settings["domain"]).tasks(POOL, 0, "pool")
    rewards = {}
    for name in names:
        rewards[shown(name)] = make_reward(
            name,
            policy,
            pool,
            inverter=settings["inverter"],
            inverse_temperature=settings["inverse_temperature"],
            embedder=settings["embedder"],
            gates=settings["gates"],
            truth=Truth,
        )
    tokens = settings["max_new_tokens"]
    answers = ask(
        policy,
        cases,
        sampled=len(cases),
        samples=samples,
        temperature=settings["temperature"],
        max_new_tokens=tokens,
        reward=None if settings["choosing"] else rewards[shown(settings["reward"])],
    )
    if settings["choosing"]:
        answers = scored(answers, rewards)
    both = []
    for answer, right in zip(answers, ask_inverse(policy, cases, tokens), strict=True):
        both.append(replace(answer, inverse=right))
    return both
