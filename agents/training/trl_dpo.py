"""Learning from preferences: TRL's `DPOTrainer` on pairs of our token ids, and nothing else left of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

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


class Preference(NamedTuple):
    """Token ids of a prompt and of two answers, each with what ends an answer; its weight in the loss."""

    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]
    weight: float = 1.0


class PairTrainer(DPOTrainer):
    """TRL's trainer on the tokens that were generated: their text need not give the same ones again."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*self._signature_columns, "weight"]

    def compute_loss(self, model: Any, inputs: Any, *others: Any, **more: Any) -> Any:
        """TRL's loss, times the pair's weight where it has one."""
        weight = inputs.pop("weight", None)
        loss = super().compute_loss(model, inputs, *others, **more)
        return loss if weight is None else loss * weight

    def _send_telemetry(self) -> None:
        """Sends nothing; there is a new trainer in each cycle."""


class OneWeighted(DataCollatorForPreference):
    """A batch of one pair, with its weight."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch, and the weight as a number."""
        [pair] = examples
        batch: dict[str, Any] = super().torch_call(examples)
        return {**batch, "weight": torch.tensor(pair["weight"])}


def train_on_pairs(
    policy: Policy,
    pairs: Sequence[Preference],
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
    """Trains the adapter on pairs; whatever else TRL changes on the model is undone.

    Where memory runs out, the steps are cut into parts of equal weight.

    Args:
        lr: learning rate; those up to `epochs` are the settings of the same names.
        stream_parts: (seed, cycle, purpose): order of the pairs and dropout derive from it.
        folder: TRL wants an existing one and writes nothing into it.

    Returns:
        `train/loss` and the rest of `METRICS`, means over the pairs when they were trained on. Rewards
        are beta times the log-ratio; log-probabilities are sums over the command's tokens, in nats.

    Raises:
        TrainingError: a loss or a gradient that is NaN or infinite, or weights that did not change.
    """
    weighted = any(pair.weight != 1 for pair in pairs)
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
    rows = []
    for prompt, chosen, rejected, weight in pairs:
        row: dict[str, Any] = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        rows.append({**row, "weight": weight} if weighted else row)

    def update(size: int) -> list[Mapping[str, Any]]:
        # A loss has one weight, so that pairs with weights go through the model one by one.
        at_once = 1 if weighted else size // 2
        arguments.per_device_train_batch_size = at_once
        arguments.gradient_accumulation_steps = batch_size // at_once
        optimizer = adamw(policy.trainable(), lr, None)
        with updating(policy, lr, *stream_parts):
            return _steps(policy, rows, on_one_device(arguments), optimizer, reference)

    last = len(pairs) % batch_size or batch_size  # pairs in the last step of an epoch

    def part(size: int) -> int:
        if size // 2 >= batch_size:
            return 2 * batch_size
        return 2 * divisor(math.gcd(batch_size, last), size // 2)

    steps = fitted(policy, policy.trainable(), None, part, update)
    return {
        **_pair_means(steps, _step_sizes(len(pairs), batch_size, epochs)),
        "train/grad_norm": math.fsum(step["grad_norm"] for step in steps) / len(steps),
        "train/steps": float(len(steps)),
    }


def _steps(
    policy: Policy,
    rows: Sequence[Mapping[str, Any]],
    arguments: DPOConfig,
    optimizer: torch.optim.Optimizer,
    reference: str,
) -> list[Mapping[str, Any]]:
    """TRL's log of each step of an update."""
    weighted = "weight" in rows[0]
    with contained(policy), unpatched(policy):
        with precise(policy):
            trainer = PairTrainer(
                policy.model,
                args=arguments,
                train_dataset=Dataset.from_list(rows),
                data_collator=OneWeighted(policy.pad) if weighted else None,
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


def preferences_of(policy: Policy, batch: Batch, pairs: Sequence[Pair]) -> list[Preference]:
    """Pairs of a batch in tokens."""
    examples = examples_of(policy, batch.rollouts)
    found = []
    for chosen, rejected in pairs:
        prompt, chosen_ids = examples[chosen]
        found.append(Preference(prompt, chosen_ids, examples[rejected][1]))
    return found


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
