"""Rewards as TRL takes them: one of its `reward_funcs`, and tasks as rows of its dataset. Imports no TRL.

    dataset = Dataset.from_list([task_row(task) for task in source.tasks(200, 0)])
    score = as_reward_func(make_reward("likelihood", policy, []))
    trainer = GRPOTrainer(model, reward_funcs=score, train_dataset=dataset, ...)

TRL hands out flat rows, the candidates of a task one after the other; a reward wants them in groups. The
whole example is in docs/ENVIRONMENT.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from envs.answers import command_in
from envs.prompts import forward_prompt
from envs.streams import unit
from envs.types import InputError, Reward, Score, Task
from rewards.gates import TEMPLATE
from rewards.wrappers import check_scores

COLUMNS = ("task_id", "domain", "task", "tool")
RewardFunc = Callable[..., "list[float | None]"]


def task_row(task: Task) -> dict[str, Any]:
    """A row of a dataset: `prompt`, a user's message as chat models take it, and the task in `COLUMNS`.

    Raises:
        InputError: the message has control tokens of a chat template, which TRL would not take for text.
    """
    prompt = forward_prompt(task)
    messages = [{"role": "user", "content": prompt.text}]
    if prompt.system:
        messages.insert(0, {"role": "system", "content": prompt.system})
    for message in messages:
        if found := TEMPLATE.search(message["content"]):
            problem = f"has {found[0]}, which TRL takes for a part of the chat template"
            raise InputError(f"task {task.id}: {problem}: leave the task out")
    return {"prompt": messages, **columns_of(task)}


def columns_of(task: Task) -> dict[str, str]:
    """A task in `COLUMNS`."""
    return {"task_id": task.id, "domain": task.domain, "task": task.text, "tool": task.tool}


def as_reward_func(reward: Reward, seed: int = 0) -> RewardFunc:
    """A reward for TRL's `reward_funcs`.

    It scores the command in a completion, see `envs.answers`. A score of None is passed on: TRL leaves that
    candidate out. Random numbers come from `seed` and the trainer's step.

    Args:
        reward: called once for each batch that TRL generated.
        seed: for rewards that draw random numbers.

    Returns:
        `f(prompts, completions, trainer_state, **columns)` -> N scores, with the errors of `score_rows`.
    """

    def inversion_reward(
        prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        state = columns.get("trainer_state")
        step = 0 if state is None else state.global_step
        commands = [command_in(text_of(completion)) for completion in completions]
        seed_of_step = int(unit("trl", seed, step) * 2**62)
        scores = score_rows(reward, commands, columns, seed_of_step)
        return [score.value for score in scores]

    return inversion_reward


def score_rows(
    reward: Reward, commands: Sequence[str], columns: Mapping[str, Sequence[str]], seed: int
) -> list[Score]:
    """Scores N flat rows with one call of the reward: consecutive rows of one task are its candidates.

    Args:
        commands: N of them.
        columns: those of `COLUMNS`, with N values each; others are ignored.

    Raises:
        InputError: a column is missing.
        ValueError: a column does not have N values, or a score is not finite: to TRL, NaN abstains.
    """
    for name in COLUMNS:
        if name not in columns:
            raise InputError(
                f"the dataset has no column {name}: make its rows with rewards.trl.task_row, "
                f"or give it {', '.join(COLUMNS)}"
            )
    tasks: list[Task] = []
    groups: list[list[str]] = []
    for command, *values in zip(commands, *(columns[name] for name in COLUMNS), strict=True):
        task = Task(*values)
        if not tasks or task != tasks[-1]:
            tasks.append(task)
            groups.append([])
        groups[-1].append(command)
    scores_P_G = reward(tasks, groups, seed=seed)
    check_scores(type(reward).__name__, tasks, groups, scores_P_G)
    flat = []
    for scores in scores_P_G:
        flat += scores
    return flat


def text_of(completion: Any) -> str:
    """The text of a completion: itself, or the content of the last of a chat model's messages."""
    if isinstance(completion, str):
        return completion
    if not completion:
        return ""
    content = completion[-1].get("content")
    if not isinstance(content, str):
        return ""
    return content
