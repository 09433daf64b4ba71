"""Before the first cycle: what the model is asked and answers, and whether a run can learn anything from it.

A model whose answers are mostly invalid, or the same command for every task, has nothing to select from. That
is nearly always a matter of format, and it shows in seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from agents.cli.display import say
from agents.policy.policy import Policy
from agents.training.config import TrainConfig
from agents.training.rollouts import Rollout, roll_out
from envs.domain import domain_names
from envs.prompts import forward_prompt
from envs.source import Source
from envs.types import InputError, Reward

TASKS, CANDIDATES = 8, 2  # tasks of each domain
MOST = 0.5  # share of candidates that may be invalid, or the same command


def preflight(policy: Policy, source: Source, reward: Reward, config: TrainConfig) -> None:
    """Shows an answer to a task of each domain, and refuses a run that has nothing to learn from.

    Raises:
        InputError: most of a first batch is invalid, or the same command; not with `--force`.
    """
    domains = domain_names(config.domain)
    batch = roll_out(
        policy,
        source,
        reward,
        tasks=min(config.tasks, TASKS * len(domains)),
        candidates=CANDIDATES,
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        stream=(config.seed, 0, "preflight"),
    )
    if not policy.tokens.knows_domains:
        for domain in domains:
            shown = [group[0] for group in batch.groups if group[0].task.domain == domain]
            if shown:
                say(described(policy, shown[0]))
    problem = fault(batch.rollouts)
    if problem and not config.force:
        fix = (
            "try --shots 8, --prefill, python -m agents.sft, or another --model; --force starts all the same"
        )
        raise InputError(f"--model {config.model or 'embedded'}: {problem}: {fix}")
    if problem:
        say(f"preflight: {problem}")


def described(policy: Policy, rollout: Rollout) -> str:
    """A candidate from the prompt, as the model reads it, to the score; for a person."""
    score = rollout.score
    value = "abstained" if score.value is None else f"{score.value:.3f}"
    lines = [
        f"domain          {rollout.task.domain}",
        f"prompt          {_indented(policy.tokens.as_text(forward_prompt(rollout.task)))}",
        f"answer          {_indented(rollout.completion.text)}",
        f"command         {rollout.answer.command or '-'}",
        f"score           {value}{f' ({score.reason})' if score.reason else ''}",
    ]
    if score.reconstruction is not None:
        lines.append(f"reconstruction  {score.reconstruction}")
    return "\n".join(lines) + "\n"


def _indented(text: str) -> str:
    return text.strip().replace("\n", "\n" + " " * 16)


def fault(rollouts: Sequence[Rollout]) -> str:
    """Why a run could learn nothing from such candidates; empty where it could."""
    reasons: Counter[str] = Counter()
    for rollout in rollouts:
        if rollout.answer.command is None or rollout.score.closed:
            reasons[rollout.score.reason or "no command"] += 1
    count = f"of the {len(rollouts)} first commands"
    if reasons.total() > MOST * len(rollouts):
        reason, _ = reasons.most_common(1)[0]
        return f"{reasons.total()} {count} are invalid, mostly: {reason}"
    tasks = {rollout.task.text for rollout in rollouts}
    command, times = Counter(rollout.command for rollout in rollouts).most_common(1)[0]
    if len(tasks) > 2 and times > MOST * len(rollouts):
        return f"{times} {count} are the same, {command!r}"
    return ""
