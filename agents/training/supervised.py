"""Supervised fine-tuning on labelled pairs of a task and its command, in both directions.

The pairs are handed in by a command. Nothing here can look one up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from agents.policy.policy import Policy
from agents.training.pairs import Pair
from agents.training.update import (
    Example,
    Schedule,
    adamw,
    save_optimizer,
    step_on,
    updating,
    with_end,
)
from envs.prompts import forward_prompt, inverse_prompt
from envs.streams import stream

MIXED = 8  # batches whose examples are sorted by length together, so that little of a batch is padding


def forward_examples(policy: Policy, pairs: Sequence[Pair]) -> list[Example]:
    """The task is asked, the command is the answer."""
    asked = [forward_prompt(task) for task, _ in pairs]
    commands = policy.answer_ids(asked, [command for _, command in pairs])
    return with_end(policy, policy.prompt_ids(asked), commands)


def inverse_examples(policy: Policy, pairs: Sequence[Pair]) -> list[Example]:
    """The command is asked about, the text of the task is the answer."""
    prompts = policy.prompt_ids([inverse_prompt(task, command) for task, command in pairs])
    return with_end(policy, prompts, policy.completion_ids([task.text for task, _ in pairs]))


class Tuner:
    """AdamW on the adapter, with moments and a schedule that last for the whole run.

    Args:
        policy: whose adapter is trained.
        schedule: learning rate of each step.
        batch_size: examples per step.
        restored: the checkpoint to go on from, if any.
        step: steps done before.
    """

    def __init__(
        self, policy: Policy, schedule: Schedule, batch_size: int, restored: Path | None, step: int
    ) -> None:
        self.policy, self.schedule, self.batch_size, self.step = policy, schedule, batch_size, step
        self.parameters = policy.trainable()
        self.optimizer = adamw(self.parameters, schedule.peak, restored)

    def save(self, folder: Path) -> None:
        """Writes the moments into a checkpoint's folder."""
        save_optimizer(self.optimizer, folder)

    def train(
        self, examples: Sequence[Example], passes: int, *stream_parts: object
    ) -> dict[str, float | None]:
        """Passes over the examples: steps on the mean negative log-likelihood of completion tokens.

        Args:
            stream_parts: (seed, cycle, purpose): order of the examples and dropout derive from it.

        Returns:
            `train/loss` (nats per token, over all passes), `train/grad_norm`, `train/steps`,
            `train/examples` and `train/lr` of the last step.

        Raises:
            TrainingError: a loss or a gradient that is NaN or infinite, or weights that did not change.
        """
        losses: list[float] = []  # of each step, summed over its tokens
        norms: list[float] = []
        tokens = 0
        with updating(self.policy, self.schedule.peak, *stream_parts):
            for epoch in range(passes):
                for rows in batches_of(examples, self.batch_size, epoch, *stream_parts):
                    for group in self.optimizer.param_groups:
                        group["lr"] = self.schedule.at(self.step)
                    self.step += 1
                    batch = [examples[row] for row in rows]
                    loss, norm, count = step_on(
                        self.policy, self.optimizer, self.parameters, batch, self.step
                    )
                    losses.append(loss)
                    norms.append(norm)
                    tokens += count
        return {
            "train/loss": math.fsum(losses) / tokens,
            "train/grad_norm": math.fsum(norms) / len(norms),
            "train/steps": float(len(losses)),
            "train/examples": float(len(examples)),
            "train/lr": self.schedule.at(self.step - 1),
        }


def batches_of(examples: Sequence[Example], size: int, epoch: int, *stream_parts: object) -> list[list[int]]:
    """Positions of the examples of each batch, in random order; those of a batch have similar lengths."""

    def length(row: int) -> int:
        prompt, completion = examples[row]
        return len(prompt) + len(completion)

    rng = stream("order", epoch, *stream_parts)
    order = list(range(len(examples)))
    rng.shuffle(order)
    batches = []
    for first in range(0, len(order), MIXED * size):
        mixed = sorted(order[first : first + MIXED * size], key=length)
        batches += [mixed[start : start + size] for start in range(0, len(mixed), size)]
    rng.shuffle(batches)
    return batches


def loss_of(policy: Policy, examples: Sequence[Example]) -> float:
    """Mean negative log-likelihood of the completion tokens of examples, in nats per token."""
    rows = policy.logprobs_of_ids(examples)
    values = [value for row in rows for value in row]
    return -math.fsum(values) / len(values)
