"""One batch of experience: draw tasks, let the policy write candidates, score them. Every trainer uses this and nothing else for it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.evaluation.metrics import mean
from agents.policy.policy import Policy
from envs.prompts import forward_prompt
from envs.source import Source
from envs.streams import seed_of
from envs.types import Completion, Reward, Score, Task
from rewards.wrappers import inverter_of, with_inverter


@dataclass(frozen=True)
class Rollout:
    """One candidate: what was asked, what was written, how it scored."""

    task: Task
    completion: Completion
    score: Score


@dataclass(frozen=True)
class Batch:
    """The candidates of one phase, grouped by task: `groups[p][g]`. `seconds`: how long each part took."""

    groups: list[list[Rollout]]
    dropped: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def rollouts(self) -> list[Rollout]:
        """All candidates, task after task."""
        return [rollout for group in self.groups for rollout in group]


def collect(
    policy: Policy,
    source: Source,
    reward: Reward,
    *,
    tasks: int,
    candidates: int,
    temperature: float,
    max_new_tokens: int,
    stream: tuple[object, ...],
) -> Batch:
    """Draws tasks and scores `candidates` commands for each, all from the random stream (seed, cycle, phase)."""
    started = time.perf_counter()
    tasks_P = source.tasks(tasks, *stream)
    written_P_G = policy.generate(
        [forward_prompt(task) for task in tasks_P],
        candidates,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seed=seed_of(*stream, "generate"),
    )
    generated = time.perf_counter()
    scores_P_G = reward(
        tasks_P,
        [[completion.text for completion in row] for row in written_P_G],
        seed=seed_of(*stream, "reward"),
    )
    groups = [
        [Rollout(task, completion, score) for completion, score in zip(completions, scores, strict=True)]
        for task, completions, scores in zip(tasks_P, written_P_G, scores_P_G, strict=True)
    ]
    return Batch(
        groups, source.dropped(), {"generate": generated - started, "reward": time.perf_counter() - generated}
    )


def reward_metrics(rollouts: Sequence[Rollout]) -> dict[str, float | None]:
    """`reward/mean`, each `reward/<part>`, and the share `reward/abstained`."""
    values = [rollout.score.value for rollout in rollouts if rollout.score.value is not None]
    parts = sorted({part for rollout in rollouts for part in rollout.score.parts})
    return {
        "reward/mean": mean(values),
        **{
            f"reward/{part}": mean([r.score.parts[part] for r in rollouts if part in r.score.parts])
            for part in parts
        },
        "reward/abstained": 1 - len(values) / len(rollouts),
    }


def policy_metrics(policy: Policy, groups: Sequence[Sequence[Rollout]]) -> dict[str, float | None]:
    """`policy/entropy`, `policy/kl` to the base, `policy/length`, `policy/truncated`.

    Entropy and KL are those of the whole next-token distribution at temperature 1, in nats, averaged over the tokens of the
    first candidate of each task; these were drawn at the sampling temperature. The rest is over all candidates.
    """
    rollouts = [rollout for group in groups for rollout in group]
    prompts = policy.prompt_ids([forward_prompt(group[0].task) for group in groups])
    entropy, divergence = policy.entropy_and_kl(
        [(p, group[0].completion.token_ids) for p, group in zip(prompts, groups, strict=True)]
    )
    return {
        "policy/entropy": entropy,
        "policy/kl": divergence,
        "policy/length": mean([float(len(rollout.completion.token_ids)) for rollout in rollouts]),
        "policy/truncated": mean([float(rollout.completion.truncated) for rollout in rollouts]),
    }


def inverter_gap(reward: Reward, groups: Sequence[Sequence[Rollout]], seed: int) -> float | None:
    """Mean score under the model as it trains less that under its base, on the same candidates; None for a reward without inverter.

    When it grows, forward and inverse are agreeing on a code of their own rather than on the language.
    """
    if inverter_of(reward) is None:
        return None
    tasks, commands = (
        [group[0].task for group in groups],
        [[rollout.completion.text for rollout in group] for group in groups],
    )
    values: list[list[float | None]] = []
    for which in ("current", "base"):
        twin = with_inverter(reward, which)
        values.append([score.value for row in twin(tasks, commands, seed=seed) for score in row])
    return mean(
        [mine - base for mine, base in zip(*values, strict=True) if mine is not None and base is not None]
    )


def records(rollouts: Sequence[Rollout], accepted: Iterable[int], **where: Any) -> list[dict[str, Any]]:
    """Lines for rollouts.jsonl; `where` says the cycle and the phase."""
    chosen = set(accepted)
    return [
        {
            **where,
            "task_id": r.task.id,
            "domain": r.task.domain,
            "task": r.task.text,
            "tool": r.task.tool,
            "command": r.completion.text,
            "token_ids": r.completion.token_ids,
            "logprob": sum(r.completion.logprobs),
            "truncated": r.completion.truncated,
            "score": r.score.value,
            "parts": dict(r.score.parts),
            "reconstruction": r.score.reconstruction,
            "reason": r.score.reason,
            "accepted": row in chosen,
        }
        for row, r in enumerate(rollouts)
    ]


def read_accepted(path: Path, phase: str) -> list[Rollout]:
    """The accepted candidates of a phase from rollouts.jsonl, oldest first, as far as training needs them; none without the file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row["accepted"] and row["phase"] == phase]
    return [
        Rollout(
            Task(row["task_id"], row["domain"], row["task"], row["tool"]),
            Completion(row["command"], tuple(row["token_ids"]), truncated=row["truncated"]),
            Score(row["score"], row["parts"], row["reconstruction"]),
        )
        for row in rows
    ]
