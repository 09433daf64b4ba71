"""A reward model in training: beside the policy whose commands it scores, with its optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.policy.load import load_policy
from agents.policy.policy import Policy
from agents.policy.reward_model import RewardModel
from agents.training.config import TrainConfig
from agents.training.preferences import Preference
from agents.training.rollouts import Batch
from agents.training.saved import saved
from agents.training.session import lora_of
from agents.training.update import adamw, save_optimizer
from envs.prompts import forward_prompt
from rewards.learnt import FOLDER


class Learner:
    """Call `begin` when the policy is there, then `resume`.

    Args:
        about: how the model is made, for its card.

    Attributes:
        model: the reward model, with adapter and head as they are now.
        optimizer: AdamW on both.
    """

    def __init__(self, config: TrainConfig, about: Mapping[str, Any]) -> None:
        self.config, self.about = config, about

    def begin(self, reward: str, beside: Policy) -> RewardModel:
        """A new model on what the policy starts from."""
        config = self.config
        reader = load_policy(
            config.model or "embedded",
            adapter=config.adapter,
            lora=lora_of(config),
            load_in_4bit=config.load_in_4bit,
            dtype=beside.compute.dtype,
            threads=beside.compute.threads,
            seed=config.seed,
        )
        self.model = RewardModel(reader, beside, config.seed)
        return self.model

    def resume(self, checkpoint: Path | None) -> None:
        """Makes the optimizer, and goes back to a checkpoint if there is one."""
        if checkpoint is not None:
            self.model.load(checkpoint / FOLDER)
        self.optimizer = adamw(self.model.trainable(), self.config.lr, checkpoint)

    def save(self, checkpoint: Path) -> None:
        """Writes the model and the moments into a checkpoint's folder."""
        policy = self.model.beside
        card = {
            "base": saved(self.config)["model"] or "embedded",
            "load_in_4bit": self.config.load_in_4bit,
            "labels": policy.labels + policy.usage.preferences,
            "judge_calls": policy.usage.judge_calls,
            **self.about,
        }
        self.model.reader.labels = card["labels"]  # for who takes its adapter as that of a policy
        self.model.save(checkpoint / FOLDER, card)
        save_optimizer(self.optimizer, checkpoint)

    def sequences(self, preferences: Sequence[Preference]) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of each preference's task with the first command, and with the second."""
        prompts = [forward_prompt(one.task) for one in preferences]
        first = self.model.sequences(prompts, [one.first for one in preferences])
        return first, self.model.sequences(prompts, [one.second for one in preferences])

    def differences(self, preferences: Sequence[Preference]) -> list[float]:
        """By how much the first command's score is above the second's, as the model is now."""
        first, second = self.sequences(preferences)
        values = self.model.scores(first + second)
        halves = zip(values[: len(first)], values[len(first) :], strict=True)
        return [one - other for one, other in halves]

    def recenter(self, batch: Batch) -> None:
        """Takes the mean score of a batch's commands from every score from now on."""
        written = [rollout for rollout in batch.rollouts if rollout.command]
        if written:
            prompts = [forward_prompt(rollout.task) for rollout in written]
            commands = [rollout.command for rollout in written]
            scores = self.model.scores(self.model.sequences(prompts, commands))
            self.model.center = math.fsum(scores) / len(scores)
