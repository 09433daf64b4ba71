"""What a model is asked: every prompt about a task, in the words of the task's domain."""

from __future__ import annotations

from envs.domain import Domain, load_domain
from envs.types import Kind, Prompt, Task


def forward_prompt(task: Task) -> Prompt:
    """Asks for a command that does the task."""
    domain = load_domain(task.domain)
    text = domain.prompt("forward", task=task.text, tool=task.tool)
    return Prompt(text, domain.where, "forward", task.system or domain.system, domain.prefill)


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
    text = load_domain(task.domain).prompt("judge", task=task.text, command=command)
    return Prompt(text, kind="judge")


def rate_prompt(task: Task, reconstruction: str) -> Prompt:
    """Asks how similar a reconstruction is to the task, from 0 to 10."""
    text = load_domain(task.domain).prompt("rate", task=task.text, reconstruction=reconstruction)
    return Prompt(text, kind="rate")
