"""What a model is asked: every prompt about a task, in the words of the task's domain."""

from __future__ import annotations

from envs.domain import load_domain
from envs.types import Task


def forward_prompt(task: Task) -> str:
    """Asks for a command that does the task."""
    return load_domain(task.domain).prompt("forward", task=task.text, tool=task.tool)


def inverse_prompt(task: Task, command: str) -> str:
    """Asks what task the command does. It uses only the task's domain, so the answer is not given away."""
    return load_domain(task.domain).prompt("inverse", command=command)


def judge_prompt(task: Task, command: str) -> str:
    """Asks whether the command does the task, yes or no."""
    return load_domain(task.domain).prompt("judge", task=task.text, command=command)


def rate_prompt(task: Task, reconstruction: str) -> str:
    """Asks how similar a reconstruction is to the task, from 0 to 10."""
    return load_domain(task.domain).prompt("rate", task=task.text, reconstruction=reconstruction)
