"""Our rewards as TRL takes them: one of its `reward_funcs`, and a task as a row of its dataset. Imports nothing of TRL.

    dataset = Dataset.from_list([task_row(task) for task in source.tasks(200, 0)])
    trainer = GRPOTrainer(model, reward_funcs=as_reward_func(make_reward("likelihood", policy, [])), train_dataset=dataset, ...)

TRL hands rows out flat, the candidates of a task one after the other; a reward wants them in groups. docs/ENVIRONMENT.md has the whole
example.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from envs.prompts import forward_prompt
from envs.streams import unit
from envs.types import InputError, Reward, Score, Task

COLUMNS = ("task_id", "domain", "task", "tool")
RewardFunc = Callable[..., "list[float | None]"]


def task_row(task: Task) -> dict[str, Any]:
    """A row of a dataset: `prompt` with the user's message, as a chat model takes it, and the task in `COLUMNS`."""
    prompt = forward_prompt(task)
    message = {"role": "user", "content": prompt}
    return {
        "prompt": [message],
        "task_id": task.id,
        "domain": task.domain,
        "task": task.text,
        "tool": task.tool,
    }


def as_reward_func(reward: Reward, seed: int = 0) -> RewardFunc:
    """A reward for TRL's `reward_funcs`.

    Of a completion, a text or messages, it scores the first line that is not blank. A score of None is passed on: TRL leaves such a
    candidate out. Random numbers come from `seed` and the trainer's step.

    Args:
        reward: called once for each batch that TRL generated.
        seed: of a reward that draws random numbers.

    Returns:
        `f(prompts, completions, trainer_state, **columns)` -> N scores. It raises InputError where the dataset lacks a column of `COLUMNS`.
    """

    def inversion_reward(
        prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        state = columns.get("trainer_state")
        step = 0 if state is None else state.global_step
        texts = [first_line(text_of(completion)) for completion in completions]
        scores = score_rows(reward, texts, columns, int(unit("trl", seed, step) * 2**62))
        return [score.value for score in scores]

    return inversion_reward


def score_rows(
    reward: Reward, commands: Sequence[str], columns: Mapping[str, Sequence[str]], seed: int
) -> list[Score]:
    """Scores N flat rows with one call of the reward: consecutive rows of one task are its candidates.

    Args:
        commands: N of them.
        columns: those of `COLUMNS`, N values each; others are not looked at.

    Raises:
        InputError: a column is missing.
        ValueError: a column has not N values.
    """
    if missing := [name for name in COLUMNS if name not in columns]:
        wanted = ", ".join(COLUMNS)
        raise InputError(
            f"the dataset has no column {missing[0]}: make its rows with rewards.trl.task_row, or give it {wanted}"
        )
    tasks = [Task(*values) for values in zip(*(columns[name] for name in COLUMNS), strict=True)]
    groups = [
        (task, [command for _, command in rows])
        for task, rows in itertools.groupby(zip(tasks, commands, strict=True), key=lambda row: row[0])
    ]
    scores_P_G = reward([task for task, _ in groups], [candidates for _, candidates in groups], seed=seed)
    return [score for row in scores_P_G for score in row]


def text_of(completion: Any) -> str:
    """What was written: a completion is a text or, of a chat model, a list of messages of which the last one counts."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else ""
    return content if isinstance(content, str) else ""


def first_line(text: str) -> str:
    """The first line that is not blank, stripped, as `Completion.text` has it."""
    return text.strip().split("\n")[0].strip()
