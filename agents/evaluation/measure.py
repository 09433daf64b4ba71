"""One model on all tasks: it and its reward are loaded, and its answers judged in both directions."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents.evaluation.answers import Answer, ask, ask_inverse
from agents.evaluation.headroom import scored
from agents.evaluation.shots import draw_shots
from agents.policy.chat import read_options
from agents.policy.load import load_policy
from agents.policy.reward_model import load_reward_model
from envs.source import make_source
from envs.verify.truth import Case, verify
from rewards.gates import gate
from rewards.labelled import Truth
from rewards.registry import POOL, make_reward, reward_info, shown


def judgeable(cases: Sequence[Case]) -> dict[str, Any]:
    """How many tasks of a file can be judged, and which references the gates would stop, as plain values.

    Returns:
        `tasks`, `judged`: those whose reference is right by its own measure, `own`: those with a tree or
        database of their own. `reasons` why the others cannot be judged and `gated`, why references would
        score 0: the most frequent first, each with the line of its first task and an example.
    """
    verdicts = verify([case.task for case in cases], [case.reference for case in cases], cases)
    unjudged: list[tuple[Case, str]] = []
    gated: list[tuple[Case, str]] = []
    for case, verdict in zip(cases, verdicts, strict=True):
        if not verdict.correct:
            unjudged.append((case, verdict.reason.removesuffix(f": {case.reference}")))
        if closed := gate(case.task, case.reference).reason:
            gated.append((case, f"{closed}: {case.reference}"))
    return {
        "tasks": len(cases),
        "judged": len(cases) - len(unjudged),
        "own": sum(case.given is not None for case in cases),
        "reasons": _counted(unjudged),
        "gated": _counted(gated),
    }


def _counted(found: Sequence[tuple[Case, str]]) -> list[dict[str, Any]]:
    """Rows of how often each reason stands before the first `: ` of what was found."""
    rows: dict[str, dict[str, Any]] = {}
    for case, said in found:
        reason, _, example = said.partition(": ")
        line = case.task.id.removeprefix("file/")
        row = rows.setdefault(reason, {"reason": reason, "tasks": 0, "line": line, "example": example})
        row["tasks"] += 1
    return sorted(rows.values(), key=lambda row: -row["tasks"])


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
        prefill=settings["prefill"],
        shots=draw_shots(settings["domain"], settings["shots"]),
    )
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
            learnt=functools.partial(load_reward_model, beside=policy),
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
