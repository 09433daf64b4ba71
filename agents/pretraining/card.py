"""The model card of such a model, and the measurements in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.evaluation.answers import ask, ask_inverse, held_out_cases, not_executed
from agents.evaluation.metrics import auc, best_of, kept, mean, pass_at_k, within_task_auc
from agents.policy.load import load_policy
from agents.policy.policy import Policy
from envs.prompts import forward_prompt
from envs.streams import seed_of
from envs.types import InputError, Prompt, Task
from rewards.registry import POOL, make_reward

TASKS = 900
SAMPLES = 4  # per task, at temperature 0.7
REWARDS = ("likelihood", "likelihood-min", "similarity", "original-blend")
EASY = 0.6  # a model that reconstructs more of the tasks than this is an easy test bed
Scores = list[list[float | None]]  # [P][G], None where a reward abstains


def measure(folder: Path, domain: str) -> dict[str, float]:
    """What a test bed for self-improvement must show: a model that errs, and rewards that find what is right.

    Raises:
        InputError: commands cannot be executed on this machine.
    """
    policy = load_policy(str(folder))
    cases = held_out_cases(domain, TASKS)
    tasks = [case.task for case in cases]
    answers = ask(policy, cases, sampled=TASKS, samples=SAMPLES, temperature=0.7, max_new_tokens=64)
    greedy_right: list[bool] = []
    right_P_G: list[list[bool]] = []
    commands_P_G: list[list[str]] = []
    verdicts = []
    for answer in answers:
        verdicts += [judged.verdict for judged in answer.commands]
        greedy_right.append(answer.greedy.verdict.correct)
        right_P_G.append([sample.verdict.correct for sample in answer.samples])
        commands_P_G.append([sample.command for sample in answer.samples])
    missing = not_executed(verdicts)
    if missing:
        raise InputError(f"the model card needs a verdict for every command: {missing}")

    measured: dict[str, float | None] = {
        "greedy": _share(greedy_right),
        "pass@1": _pass_at(1, right_P_G),
        "pass@4": _pass_at(4, right_P_G),
        "inverse, greedy": _share(ask_inverse(policy, cases)),
    }
    measured |= _ranking("forward confidence", right_P_G, _confidence(policy, tasks, commands_P_G))
    for name in REWARDS:
        reward = make_reward(name, policy, tasks[:POOL], inverse_temperature=0.0, gates=False)
        scores_P_G: Scores = []
        for scores in reward(tasks, commands_P_G, seed=seed_of("card")):
            scores_P_G.append([score.value for score in scores])
        measured |= _ranking(name, right_P_G, scores_P_G)
    return {name: value for name, value in measured.items() if value is not None}


def _share(right: Sequence[bool | None]) -> float | None:
    """Share of right answers; one that cannot be checked is not right."""
    return mean([float(bool(each)) for each in right])


def _pass_at(k: int, right_P_G: Sequence[Sequence[bool]]) -> float | None:
    return mean([pass_at_k(sum(right), len(right), k) for right in right_P_G])


def _confidence(policy: Policy, tasks: Sequence[Task], commands_P_G: Sequence[Sequence[str]]) -> Scores:
    """Log-probability of each command given its task."""
    prompts: list[str | Prompt] = []
    commands: list[str] = []
    for task, row in zip(tasks, commands_P_G, strict=True):
        prompts += [forward_prompt(task)] * len(row)
        commands += row
    sums: list[float | None] = [math.fsum(logprobs) for logprobs in policy.logprobs(prompts, commands)]
    return [sums[start : start + SAMPLES] for start in range(0, len(sums), SAMPLES)]


def _ranking(
    name: str, right_P_G: Sequence[Sequence[bool]], scores_P_G: Sequence[Sequence[float | None]]
) -> dict[str, float | None]:
    """How well scores tell right commands from wrong ones."""
    kept_right_P_G, kept_scores_P_G = kept(right_P_G, scores_P_G)
    all_right: list[bool] = []
    all_scores: list[float] = []
    for right, scores in zip(kept_right_P_G, kept_scores_P_G, strict=True):
        all_right += right
        all_scores += scores
    return {
        f"{name}: AUC": auc(all_right, all_scores),
        f"{name}: AUC within a task": within_task_auc(kept_right_P_G, kept_scores_P_G),
        f"{name}: best of 4": best_of(kept_right_P_G, kept_scores_P_G),
    }


def card(command: str, facts: Mapping[str, Any], measured: Mapping[str, float]) -> str:
    """The model card, in Markdown.

    Args:
        command: makes this model.
        facts: what pretrain.json holds.
        measured: as `measure` returns it.
    """
    rows = "\n".join(f"| {name} | {value:.3f} |" for name, value in measured.items())
    settings = facts["config"]
    inverse = measured["inverse, greedy"]
    ease = "an easy" if inverse > EASY else "not an easy"
    title = "The embedded model" if inverse > EASY else "A model like the embedded one, with a worse reader"
    return f"""# {title}

A `MistralForCausalLM` of {facts["parameters"]:,} parameters, trained from scratch on the `pretrain` split of
the domain grammars. It is a test bed for self-improvement, not an assistant. Its training text is wrong on
purpose, as `agents/pretraining/corpus.py` describes, which leaves something to improve.

**It is {ease} test bed.** Given a reference command, it reconstructs the task correctly in {inverse:.2f} of
all cases. The rewards depend on this skill, and the gain fades with it (docs/FINDINGS.md).

- Made by `{command}`, seed {settings["seed"]}. All settings are in `pretrain.json`.
- sha256 of the corpus ({settings["examples"]:,} examples): `{facts["corpus_sha256"]}`.
- Tokenizer: byte-level BPE with single digits. Chat template: `[INST] ... [/INST]`.
- Loss on completion tokens at the end of training: {facts["final_loss"]:.3f} nats per token.
- Licence: MIT, as the repository.

Measured on {TASKS} held-out tasks, which have a paraphrase or slot values that no training text has, with
{SAMPLES} samples each at temperature 0.7. A command is right if it does what the reference does
(docs/TRUTH.md).

| | |
|---|---|
{rows}
"""
