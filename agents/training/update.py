"""What updates share: supervised fine-tuning on completions, an optimizer that is resumed, and a guard against learning nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from agents.policy.policy import Policy
from agents.policy.seeds import seeded
from agents.training.config import TrainingError
from envs.streams import stream

OPTIMIZER_FILE = "optimizer.pt"  # beside the adapter in a checkpoint
Example = tuple[
    Sequence[int], Sequence[int]
]  # prompt token ids, completion token ids with the end-of-sequence token


@contextmanager
def updating(policy: Policy, lr: float, *stream_parts: object) -> Iterator[None]:
    """Around an update phase: the model in training mode, torch's randomness from (seed, cycle, purpose).

    Raises:
        TrainingError: the phase left the adapter as it was, byte for byte.
    """
    before = policy.adapter_hash()
    policy.model.train()
    try:
        with seeded("dropout", *stream_parts):
            yield
    finally:
        policy.model.zero_grad(set_to_none=True)
        policy.model.eval()
    if policy.adapter_hash() == before:
        raise TrainingError(f"training left the adapter as it was: nothing was learnt (--lr {lr:g}?)")


def finite(what: str, value: float, step: int) -> float:
    """The value; TrainingError where it is NaN or infinite."""
    if not math.isfinite(value):
        raise TrainingError(
            f"the {what} is {value} at step {step}: lower --lr; the last checkpoint is intact"
        )
    return value


def adamw(parameters: Iterable[torch.nn.Parameter], lr: float, restored: Path | None) -> torch.optim.AdamW:
    """AdamW without weight decay; with the moments of the checkpoint that a run goes on from."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    if restored is not None and (restored / OPTIMIZER_FILE).is_file():
        optimizer.load_state_dict(
            torch.load(restored / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
        )
    return optimizer


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Writes the moments into a checkpoint's folder."""
    torch.save(optimizer.state_dict(), folder / OPTIMIZER_FILE)


def fine_tune(
    policy: Policy,
    examples: Sequence[Example],
    *,
    lr: float,
    batch_size: int,
    epochs: int,
    stream_parts: tuple[object, ...],
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
    optimizer = adamw(policy.trainable(), lr, None)
    losses: list[float] = []  # summed over the tokens of a step
    norms: list[float] = []
    tokens = 0
    with updating(policy, lr, *stream_parts):
        for epoch in range(epochs):
            order = list(range(len(examples)))
            stream("order", epoch, *stream_parts).shuffle(order)
            for start in range(0, len(order), batch_size):
                logprobs_B_T, mask_B_T = policy.token_logprobs(
                    [examples[row] for row in order[start : start + batch_size]]
                )
                values = logprobs_B_T[mask_B_T]
                loss = -values.mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                tokens += len(values)
                losses.append(finite("loss", loss.item() * len(values), len(losses) + 1))
                norms.append(
                    finite(
                        "gradient",
                        float(torch.nn.utils.clip_grad_norm_(policy.trainable(), 1.0)),
                        len(losses),
                    )
                )
                optimizer.step()
    return {
        "train/loss": math.fsum(losses) / tokens,
        "train/grad_norm": math.fsum(norms) / len(norms),
        "train/steps": float(len(losses)),
        "train/examples": float(len(examples)),
    }
