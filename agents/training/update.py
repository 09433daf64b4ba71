"""Supervised fine-tuning on completions: the one gradient step that rejection sampling and its relatives share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from agents.policy.model import Policy, seeded
from agents.training.config import TrainingError
from envs.grammar import stream

Example = tuple[Sequence[int], Sequence[int]]  # prompt token ids, completion token ids with the end-of-sequence token


def fine_tune(
    policy: Policy, examples: Sequence[Example], *, lr: float, batch_size: int, epochs: int, stream_parts: tuple[object, ...]
) -> dict[str, float | None]:
    """Trains the adapter with AdamW on the mean negative log-likelihood of completion tokens; prompts and padding have no loss.

    The optimizer is new each time, as in the documented protocol, so a checkpoint needs the adapter alone.

    Args:
        examples: (prompt ids, completion ids), in the template that generation uses.
        stream_parts: (seed, cycle, purpose): order of the examples and dropout derive from it.

    Returns:
        `train/loss` (nats per token, over the whole phase), `train/grad_norm`, `train/steps`, `train/examples`.

    Raises:
        ValueError: no examples.
        TrainingError: a loss or a gradient that is NaN or infinite, or weights that did not change.
    """
    if not examples:
        raise ValueError("no examples to train on")
    before = policy.adapter_hash()
    optimizer = torch.optim.AdamW(policy.trainable(), lr=lr, weight_decay=0.0)
    losses: list[float] = []  # summed over the tokens of a step
    norms: list[float] = []
    tokens = 0
    policy.model.train()
    try:
        with seeded("dropout", *stream_parts):
            for epoch in range(epochs):
                order = list(range(len(examples)))
                stream("order", epoch, *stream_parts).shuffle(order)
                for start in range(0, len(order), batch_size):
                    logprobs_B_T, mask_B_T = policy.token_logprobs([examples[row] for row in order[start : start + batch_size]])
                    values = logprobs_B_T[mask_B_T]
                    loss = -values.mean()
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    norms.append(float(torch.nn.utils.clip_grad_norm_(policy.trainable(), 1.0)))
                    losses.append(loss.item() * len(values))
                    tokens += len(values)
                    for name, value in (("loss", losses[-1]), ("gradient", norms[-1])):
                        if not math.isfinite(value):
                            raise TrainingError(f"the {name} is {value} at step {len(norms)}: lower --lr; the last checkpoint is intact")
                    optimizer.step()
    finally:
        optimizer.zero_grad(set_to_none=True)
        policy.model.eval()
    if policy.adapter_hash() == before:
        raise TrainingError(f"{len(losses)} training steps left the adapter as it was: nothing was learnt (--lr {lr:g}?)")
    return {
        "train/loss": math.fsum(losses) / tokens,
        "train/grad_norm": math.fsum(norms) / len(norms),
        "train/steps": float(len(losses)),
        "train/examples": float(len(examples)),
    }
