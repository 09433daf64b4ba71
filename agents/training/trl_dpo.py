"""The update of online DPO: TRL's `DPOTrainer` on pairs of our rollouts, and nothing else left of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer

from agents.policy.policy import Policy
from agents.training.rollouts import Batch
from agents.training.trl_policy import contained, logged_steps, on_one_device, precise, quiet, unpatched
from agents.training.update import adamw, divisor, examples_of, fitted, updating
from envs.streams import seed_of

# TRL's name -> ours; both are means over the pairs of a step.
METRICS = {
    "loss": "train/loss",
    "rewards/margins": "train/margin",
    "rewards/accuracies": "train/pair_accuracy",
    "rewards/chosen": "train/chosen_reward",
    "rewards/rejected": "train/rejected_reward",
    "logps/chosen": "train/chosen_logprob",
    "logps/rejected": "train/rejected_logprob",
}
Pair = tuple[int, int]  # positions of (chosen, rejected) in a batch


class PairTrainer(DPOTrainer):
    """TRL's trainer on the tokens that were generated: their text need not give the same ones again."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _send_telemetry(self) -> None:
        """Sends nothing; there is a new trainer in each cycle."""


def train_on_pairs(
    policy: Policy,
    batch: Batch,
    pairs: Sequence[Pair],
    *,
    lr: float,
    beta: float,
    sft: float,
    reference: str,
    batch_size: int,
    epochs: int,
    stream_parts: tuple[object, ...],
    folder: Path,
) -> dict[str, float | None]:
    """Trains the adapter on pairs of a batch; whatever else TRL changes on the model is undone.

    Where memory runs out, the steps are cut into parts of equal weight.

    Args:
        lr: learning rate; those up to `epochs` are the settings of the same names.
        stream_parts: (seed, cycle, purpose): order of the pairs and dropout derive from it.
        folder: TRL wants an existing one and writes nothing into it.

    Returns:
        `train/loss` and the rest of `METRICS`, means over the pairs when they were trained on. Rewards
        are beta times the log-ratio; log-probabilities are sums over the command's tokens, in nats.
        `train/score_margin` is the mean difference of score.

    Raises:
        TrainingError: a loss or a gradient that is NaN or infinite, or weights that did not change.
    """
    with quiet():
        arguments = DPOConfig(
            output_dir=str(folder),
            beta=beta,
            loss_type=["sigmoid", "sft"],
            loss_weights=[1.0, sft],
            learning_rate=lr,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            per_device_train_batch_size=batch_size,
            num_train_epochs=epochs,
            seed=seed_of(*stream_parts, "trl") % 2**32,
            max_length=None,
            disable_dropout=False,  # --lora-dropout decides
            bf16=False,  # the policy trains in the precision that it generates in
            gradient_checkpointing=False,
            use_cpu=policy.device.type == "cpu",
            dataloader_pin_memory=False,
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            logging_nan_inf_filter=False,
            disable_tqdm=True,
        )
    rows = _rows(policy, batch, pairs)

    def update(size: int) -> list[Mapping[str, Any]]:
        arguments.per_device_train_batch_size = size // 2
        arguments.gradient_accumulation_steps = batch_size // (size // 2)
        optimizer = adamw(policy.trainable(), lr, None)
        with updating(policy, lr, *stream_parts):
            return _steps(policy, rows, on_one_device(arguments), optimizer, reference)

    def part(size: int) -> int:
        return 2 * divisor(batch_size, size // 2)

    steps = fitted(policy, policy.trainable(), None, part, update)
    return {
        **_pair_means(steps, _step_sizes(len(pairs), batch_size, epochs)),
        "train/grad_norm": math.fsum(step["grad_norm"] for step in steps) / len(steps),
        "train/steps": float(len(steps)),
        "train/score_margin": _score_margin(batch, pairs),
    }


def _steps(
    policy: Policy,
    rows: Sequence[Mapping[str, Sequence[int]]],
    arguments: DPOConfig,
    optimizer: torch.optim.Optimizer,
    reference: str,
) -> list[Mapping[str, Any]]:
    """TRL's log of each step of an update."""
    with contained(policy), unpatched(policy):
        with precise(policy):
            trainer = PairTrainer(
                policy.model,
                args=arguments,
                train_dataset=Dataset.from_list(rows),
                processing_class=copy.deepcopy(policy.tokenizer),
                optimizers=(optimizer, None),
            )
        if reference == "base":
            # Without this copy of the adapter TRL turns the adapter off for the reference.
            policy.model.delete_adapter("ref")
            policy.model.set_adapter("default")
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return logged_steps(trainer.state.log_history)


def _rows(policy: Policy, batch: Batch, pairs: Sequence[Pair]) -> list[dict[str, Sequence[int]]]:
    """The pairs as TRL takes them, in tokens."""
    examples = examples_of(policy, batch.rollouts)
    rows = []
    for chosen, rejected in pairs:
        prompt, chosen_ids = examples[chosen]
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen_ids, "rejected_ids": examples[rejected][1]})
    return rows


def _step_sizes(pairs: int, batch_size: int, epochs: int) -> list[int]:
    """Pairs in each step; the last step of an epoch may have fewer."""
    epoch = [min(batch_size, pairs - start) for start in range(0, pairs, batch_size)]
    return epoch * epochs


def _pair_means(steps: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> dict[str, float | None]:
    """Means over the pairs from TRL's means over each step."""
    means: dict[str, float | None] = {}
    for its, ours in METRICS.items():
        sums = [size * step[its] for size, step in zip(sizes, steps, strict=True)]
        means[ours] = math.fsum(sums) / sum(sizes)
    return means


def _score_margin(batch: Batch, pairs: Sequence[Pair]) -> float:
    """The mean difference of score in a pair."""
    rollouts = batch.rollouts
    differences = []
    for chosen, rejected in pairs:
        differences.append((rollouts[chosen].score.value or 0.0) - (rollouts[rejected].score.value or 0.0))
    return math.fsum(differences) / len(pairs)
