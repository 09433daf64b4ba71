"""Rollouts: draw tasks, let the policy write candidates, score them; and what is logged of them."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.evaluation.metrics import mean
from envs.answers import Answer, take_out
from envs.jsonl import read_jsonl
from envs.prompts import forward_prompt
from envs.source import Source
from envs.streams import seed_of
from envs.types import Completion, InputError, Reward, Score, Task
from rewards.wrappers import check_scores, inverter_of, with_inverter

if TYPE_CHECKING:
    from agents.policy.policy import Policy


@dataclass(frozen=True)
class Rollout:
    """One candidate: the task, what was written for it, its score."""

    task: Task
    completion: Completion
    score: Score

    @functools.cached_property
    def answer(self) -> Answer:
        """The command in what was written, or why there is none."""
        return take_out(self.completion.text)

    @property
    def command(self) -> str:
        """The command that was written; empty where there is none."""
        return self.answer.command or ""

    @property
    def truncated(self) -> bool:
        """Whether the command was cut. Words after it may be cut without harm."""
        return self.completion.truncated and self.completion.text.split()[-1:] == self.command.split()[-1:]

    @property
    def complete_score(self) -> float | None:
        """The score of a command that was not truncated; a truncated one has no end to learn."""
        return None if self.truncated else self.score.value

    @property
    def acceptable(self) -> float | None:
        """The score of a command that may become a positive example: not truncated, and no gate is closed."""
        return None if self.score.closed else self.complete_score


@dataclass(frozen=True)
class Batch:
    """The candidates of one phase, grouped by task: `groups[p][g]`.

    Attributes:
        dropped: how many proposed tasks the source left out, by reason.
        seconds: wall-clock time of each part.
        set_aside: candidates of tasks that were replaced by others (see `redrawn`), grouped as well.
    """

    groups: list[list[Rollout]]
    dropped: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    set_aside: list[list[Rollout]] = field(default_factory=list)

    @property
    def rollouts(self) -> list[Rollout]:
        """All candidates, task after task."""
        return [rollout for group in self.groups for rollout in group]

    @property
    def tasks_scored(self) -> int:
        """How many tasks had their candidates scored, those that were replaced included."""
        return len(self.groups) + len(self.set_aside)

    @property
    def redrawn(self) -> list[Rollout]:
        """The candidates of tasks that were replaced, task after task."""
        return [rollout for group in self.set_aside for rollout in group]

    @property
    def acceptable(self) -> list[list[float | None]]:
        """`Rollout.acceptable` of each candidate [P][G]."""
        return [[rollout.acceptable for rollout in group] for group in self.groups]


@dataclass(frozen=True)
class Drawing:
    """How the candidates of a task are drawn.

    Attributes:
        greedy: the first is the greedy command, and only the others are sampled.
        top_k, top_p: as in `agents.policy.generate.Sampling`.
    """

    greedy: bool = False
    top_k: int = 0
    top_p: float = 1.0


AS_THEY_COME = Drawing()


def roll_out(
    policy: Policy,
    source: Source,
    reward: Reward,
    *,
    tasks: int,
    candidates: int,
    temperature: float,
    max_new_tokens: int,
    stream: tuple[object, ...],
    drawing: Drawing = AS_THEY_COME,
    watching: bool = False,
) -> Batch:
    """Draws tasks, writes and scores `candidates` commands for each.

    Args:
        stream: (seed, cycle, phase), from which all random numbers derive.
        watching: nothing is learnt from the scores, so that what they take does not count as consumed.
    """
    started = time.perf_counter()
    tasks_P = source.tasks(tasks, *stream)
    prompts = [forward_prompt(task) for task in tasks_P]
    written_P_G = policy.generate(
        prompts,
        candidates - drawing.greedy,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seed=seed_of(*stream, "generate"),
        top_k=drawing.top_k,
        top_p=drawing.top_p,
    )
    if drawing.greedy:
        greedy_P = policy.generate(prompts, temperature=0.0, max_new_tokens=max_new_tokens)
        written_P_G = [first + others for first, others in zip(greedy_P, written_P_G, strict=True)]
    generated = time.perf_counter()
    with policy.usage.stopped() if watching else contextlib.nullcontext():
        groups = scored(reward, tasks_P, written_P_G, seed_of(*stream, "reward"))
    took = time.perf_counter() - generated
    seconds = {"generate": generated - started, "watch" if watching else "reward": took}
    return Batch(groups, source.dropped(), seconds)


def alike(group: Sequence[Rollout]) -> bool:
    """Whether no two candidates of a task have scores that differ. To abstain is to give no score."""
    return len({rollout.score.value for rollout in group} - {None}) < 2


def redrawn(batch: Batch, most: int, write: Callable[[int, int], Batch]) -> Batch:
    """A batch with new tasks in place of those whose candidates all score alike, in at most `most` turns.

    This is the dynamic sampling of DAPO (Yu et al. 2025, arXiv:2503.14476): where all are right or all are
    wrong there is nothing to compare. The paper goes on until the batch is full; what is still alike after
    the last turn stays here, so that a batch always has its size and a run its end.

    Args:
        write: (tasks, turn) -> a batch of so many new tasks, or of fewer where the source has no more.
    """
    groups, set_aside = list(batch.groups), list(batch.set_aside)
    dropped, seconds = Counter(batch.dropped), Counter(batch.seconds)
    for turn in range(1, most + 1):
        places = [place for place, group in enumerate(groups) if alike(group)]
        if not places:
            break
        new = write(len(places), turn)
        dropped.update(new.dropped)
        seconds.update(new.seconds)
        for place, group in zip(places, new.groups, strict=False):
            set_aside.append(groups[place])
            groups[place] = group
    return Batch(groups, dropped, seconds, set_aside)


def scored(
    reward: Reward, tasks_P: Sequence[Task], written_P_G: Sequence[Sequence[Completion]], seed: int
) -> list[list[Rollout]]:
    """Takes the commands out of what was written for P tasks, and scores them -> [P][G].

    Raises:
        ValueError: a score is not finite.
    """
    unscored = Score(None)
    groups = []
    for task, row in zip(tasks_P, written_P_G, strict=True):
        groups.append([Rollout(task, completion, unscored) for completion in row])
    commands_P_G = [[rollout.command for rollout in group] for group in groups]
    scores_P_G = reward(tasks_P, commands_P_G, seed=seed)
    check_scores(type(reward).__name__, tasks_P, commands_P_G, scores_P_G)
    found = []
    for group, scores in zip(groups, scores_P_G, strict=True):
        scored_group = []
        for rollout, score in zip(group, scores, strict=True):
            if rollout.answer.command is None and rollout.completion.text:
                score = replace(score, reason=rollout.answer.reason)
            scored_group.append(replace(rollout, score=score))
        found.append(scored_group)
    return found


def reward_metrics(rollouts: Sequence[Rollout]) -> dict[str, float | None]:
    """`reward/mean`, the mean of each part as `reward/<part>`, and `reward/abstained`, a share."""
    values: list[float] = []
    parts: dict[str, list[float]] = {}
    for rollout in rollouts:
        if rollout.score.value is not None:
            values.append(rollout.score.value)
        for part, value in rollout.score.parts.items():
            parts.setdefault(part, []).append(value)
    metrics = {"reward/mean": mean(values)}
    for part in sorted(parts):
        metrics[f"reward/{part}"] = mean(parts[part])
    metrics["reward/abstained"] = 1 - len(values) / len(rollouts)
    return metrics


def policy_metrics(policy: Policy, groups: Sequence[Sequence[Rollout]]) -> dict[str, float | None]:
    """`policy/entropy`, `policy/kl` to the base model, `policy/length`, `policy/truncated`, `policy/plain`.

    Entropy and KL are those of the whole next-token distribution at temperature 1, in nats. They are
    averaged over the tokens of each task's first candidate, which was drawn at the sampling temperature.
    Length, in tokens, the truncated share, and the share of answers that were nothing but a command are over
    all candidates.
    """
    first = [group[0] for group in groups]
    prompts = policy.prompt_ids([forward_prompt(rollout.task) for rollout in first])
    pairs = [(prompt, rollout.completion.token_ids) for prompt, rollout in zip(prompts, first, strict=True)]
    entropy, divergence = policy.entropy_and_kl(pairs)
    rollouts = [rollout for group in groups for rollout in group]
    completions = [rollout.completion for rollout in rollouts]
    return {
        "policy/entropy": entropy,
        "policy/kl": divergence,
        "policy/length": mean([float(len(completion.token_ids)) for completion in completions]),
        "policy/truncated": mean([float(completion.truncated) for completion in completions]),
        "policy/plain": mean([float(rollout.answer.plain) for rollout in rollouts]),
    }


def inverter_gap(reward: Reward, groups: Sequence[Sequence[Rollout]], seed: int) -> float | None:
    """Mean score with the current policy as inverter minus that with the base model, on the same candidates.

    When it grows, the policy is making a private code: it reconstructs tasks from commands that nobody
    else understands. None for a reward that reconstructs nothing.
    """
    if inverter_of(reward) is None:
        return None
    tasks = [group[0].task for group in groups]
    commands = [[rollout.command for rollout in group] for group in groups]
    current_P_G = with_inverter(reward, "current")(tasks, commands, seed=seed)
    base_P_G = with_inverter(reward, "base")(tasks, commands, seed=seed)
    differences = []
    for current_G, base_G in zip(current_P_G, base_P_G, strict=True):
        for current, base in zip(current_G, base_G, strict=True):
            if current.value is not None and base.value is not None:
                differences.append(current.value - base.value)
    return mean(differences)


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
            "command": r.command,
            "answer": r.completion.text,
            "token_ids": r.completion.token_ids,
            "logprob": sum(r.completion.logprobs),
            "truncated": r.completion.truncated,
            "score": r.score.value,
            "parts": dict(r.score.parts),
            "reconstruction": r.score.reconstruction,
            "reason": r.score.reason,
            "accepted": position in chosen,
        }
        for position, r in enumerate(rollouts)
    ]


def read_accepted(path: Path, phases: Collection[str]) -> list[Rollout]:
    """The accepted candidates of phases from rollouts.jsonl, oldest first, as far as training needs them.

    A missing file has none. A candidate with a closed gate is not a positive example, whatever the log says.

    Raises:
        InputError: a line is damaged.
    """
    if not path.is_file():
        return []
    found = []
    for number, row in read_jsonl(path, fix="restore the file"):
        if not row.get("accepted") or row.get("phase") not in phases:
            continue
        place = f"{path}:{number}"
        task, completion = candidate_in(row, place)
        score, parts = row.get("score"), row.get("parts")
        if not isinstance(score, int | float | None) or not isinstance(parts, dict):
            raise _damaged(place)
        rollout = Rollout(task, completion, Score(score, parts))
        if rollout.acceptable is not None:
            found.append(rollout)
    return found


def candidate_in(row: Mapping[str, Any], place: str) -> tuple[Task, Completion]:
    """A task and what was written for it, from a line of rollouts.jsonl.

    Args:
        place: file and line, for the message.

    Raises:
        InputError: the line is damaged.
    """
    texts: tuple[object, ...] = (None,)
    try:
        task = Task(row["task_id"], row["domain"], row["task"], row["tool"])
        ids = tuple(int(token) for token in row["token_ids"])
        # The log has the sum of the log-probabilities: what is written of them again is this sum.
        completion = Completion(row["answer"], ids, (float(row["logprob"]),), bool(row["truncated"]))
        texts = (task.id, task.domain, task.text, task.tool, completion.text)
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    if not all(isinstance(text, str) for text in texts):
        raise _damaged(place)
    return task, completion


def _damaged(place: str) -> InputError:
    return InputError(f"{place}: the line is damaged: restore it, or take another run")
