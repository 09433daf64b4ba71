"""What a model is asked: every prompt about a task, in the words of the task's domain."""

from __future__ import annotations

from dataclasses import replace

from envs.domain import Domain, load_domain
from envs.grammar import CRITERIA
from envs.types import Kind, Prompt, Task


def forward_prompt(task: Task) -> Prompt:
    """Asks for a command that does the task."""
    domain = load_domain(task.domain)
    text = domain.prompt("forward", task=task.text, tool=task.tool)
    return Prompt(text, domain.where, "forward", task.system or domain.system, domain.prefill)


def hint_prompt(task: Task, command: str) -> Prompt:
    """Asks for a command that does the task, and gives one away."""
    asked = forward_prompt(task)
    return replace(asked, text=f"{asked.text}\nHint: {command}")


def inverse_prompt(task: Task, command: str) -> Prompt:
    """Asks what task the command does. It uses only the task's domain, so the answer is not given away."""
    domain = load_domain(task.domain)
    text = domain.prompt("inverse", command=command)
    return Prompt(text, domain.where, "inverse", task.system or domain.system)


def example_of(domain: Domain, kind: Kind, task: str, command: str, tool: str = "") -> tuple[str, str]:
    """A pair as it stands before a prompt: what was asked, and what was answered."""
    if kind == "forward":
        return domain.prompt("forward", task=task, tool=tool), command
    return domain.prompt("inverse", command=command), task


def judge_prompt(task: Task, command: str) -> Prompt:
    """Asks whether the command does the task, yes or no."""
    domain = load_domain(task.domain)
    text = domain.prompt("judge", task=task.text, command=command)
    return Prompt(text, kind="judge", system=task.system or domain.system)


def points_prompt(task: Task, command: str, first: int) -> Prompt:
    """Asks for 0 to 5 points for a command, one for each of five criteria; the list begins with `first`."""
    criteria = "\n".join(f"- {criterion}" for criterion in (*CRITERIA[first:], *CRITERIA[:first]))
    domain = load_domain(task.domain)
    text = domain.prompt("points", task=task.text, command=command, criteria=criteria)
    return Prompt(text, kind="judge", system=task.system or domain.system)


def critique_prompt(task: Task, command: str, principle: str) -> Prompt:
    """Asks what is wrong with the command by a principle."""
    domain = load_domain(task.domain)
    text = domain.prompt("critique", task=task.text, command=command, principle=principle)
    return Prompt(text, kind="judge", system=task.system or domain.system)


def revise_prompt(task: Task, command: str, principle: str, critique: str) -> Prompt:
    """Asks for a better command by a principle, after a critique; the answer is a command."""
    domain = load_domain(task.domain)
    text = domain.prompt("revise", task=task.text, command=command, principle=principle)
    critique = " ".join(critique.split())
    return Prompt(
        f"{text}\nCritique: {critique}", system=task.system or domain.system, prefill=domain.prefill
    )


def prefer_prompt(task: Task, first: str, second: str, principle: str) -> Prompt:
    """Asks which of two commands is better by a principle, A or B."""
    domain = load_domain(task.domain)
    text = domain.prompt("prefer", task=task.text, first=first, second=second, principle=principle)
    return Prompt(text, kind="judge", system=task.system or domain.system)


def rate_prompt(task: Task, reconstruction: str) -> Prompt:
    """Asks how similar a reconstruction is to the task, from 0 to 10."""
    text = load_domain(task.domain).prompt("rate", task=task.text, reconstruction=reconstruction)
    return Prompt(text, kind="rate")
