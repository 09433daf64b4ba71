"""What updates share: examples, training mode, the optimizer, checks; and supervised fine-tuning."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file

from agents.policy.batches import out_of_memory
from agents.policy.policy import Policy
from agents.policy.seeds import seeded
from agents.training.config import TrainingError, finite
from agents.training.rollouts import Rollout
from envs.prompts import forward_prompt
from envs.streams import stream

OPTIMIZER_FILE = "optimizer.safetensors"  # next to the adapter in a checkpoint
Result = TypeVar("Result")
Example = tuple[Sequence[int], Sequence[int]]  # prompt ids, completion ids with those that end an answer


def examples_of(policy: Policy, rollouts: Sequence[Rollout]) -> list[Example]:
    """What to learn from rollouts: the bare command, and what ends an answer.

    The tokens are those that were generated, if nothing but the command was.
    """
    asked = [forward_prompt(rollout.task) for rollout in rollouts]
    prompts = policy.prompt_ids(asked)
    completions: list[Sequence[int]] = [rollout.completion.token_ids for rollout in rollouts]
    taken_out = [row for row, rollout in enumerate(rollouts) if not rollout.answer.plain]
    commands = [rollouts[row].command for row in taken_out]
    bare = policy.answer_ids([asked[row] for row in taken_out], commands)
    for row, ids in zip(taken_out, bare, strict=True):
        completions[row] = ids
    return with_end(policy, prompts, completions)


def with_end(
    policy: Policy, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> list[Example]:
    """Token ids of prompts and of what follows each -> examples that end as an answer does."""
    return [(prompt, [*ids, *policy.end]) for prompt, ids in zip(prompts, completions, strict=True)]


@contextmanager
def training_mode(policy: Policy, *stream_parts: object) -> Iterator[None]:
    """The model in training mode, and torch's random numbers from (seed, cycle, purpose)."""
    policy.model.train()
    try:
        with seeded("dropout", *stream_parts):
            yield
    finally:
        policy.model.zero_grad(set_to_none=True)
        policy.model.eval()


@contextmanager
def updating(policy: Policy, lr: float, *stream_parts: object) -> Iterator[None]:
    """An update: `training_mode`, and TrainingError where the adapter has not changed by a single bit."""
    before = policy.adapter_hash()
    with training_mode(policy, *stream_parts):
        yield
    must_have_changed(policy, before, lr)


def must_have_changed(policy: Policy, before: str, lr: float) -> None:
    """Raises TrainingError if the adapter's hash is still what it was before the update."""
    if policy.adapter_hash() == before:
        raise TrainingError(f"the adapter did not change in this update: raise --lr ({lr:g} now)")


def fitted(
    policy: Policy,
    parameters: Sequence[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer | None,
    part: Callable[[int], int],
    update: Callable[[int], Result],
) -> Result:
    """`update(sequences at a time)`; where memory runs out, again from the same weights with half of them.

    Args:
        parameters: what the update changes.
        optimizer: whose moments it changes; None for one that the update makes.
        part: the most sequences that a step can be cut into, where so many fit into memory.
    """
    weights = [parameter.detach().clone() for parameter in parameters]
    moments = {} if optimizer is None else copy.deepcopy(optimizer.state_dict())
    ran_out = False
    while True:
        size = part(policy.training.size)
        try:
            result = update(size)
        except (MemoryError, RuntimeError) as error:
            if size == part(1) or not out_of_memory(error):
                raise
            ran_out = True
        else:
            if ran_out:  # a run that is resumed must begin with what was tried, not with what was allowed
                policy.training.size = min(policy.training.size, size)
            return result
        with torch.no_grad():
            for parameter, weight in zip(parameters, weights, strict=True):
                parameter.copy_(weight)
        if optimizer is not None:
            optimizer.load_state_dict(copy.deepcopy(moments))
        policy.training.shrink(size)


def divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is not above `most`; 1 where there is none."""
    return max((size for size in range(1, min(number, most) + 1) if number % size == 0), default=1)


def adamw(parameters: Iterable[torch.nn.Parameter], lr: float, restored: Path | None) -> torch.optim.AdamW:
    """AdamW without weight decay, with the moments that lie in the checkpoint `restored`, if any."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    if restored is not None and (restored / OPTIMIZER_FILE).is_file():
        load_moments(optimizer, restored)
    return optimizer


def load_moments(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Reads the moments of a checkpoint's folder. Learning rate and the like stay as they are."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(str(folder / OPTIMIZER_FILE)).items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Writes the moments into a checkpoint's folder: `NUMBER.NAME` -> tensor, in the parameters' order."""
    tensors = {}
    for number, moments in optimizer.state_dict()["state"].items():
        for name, tensor in moments.items():
            tensors[f"{number}.{name}"] = tensor.contiguous()
    save_file(tensors, str(folder / OPTIMIZER_FILE))


def clipped_step(
    optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter], max_norm: float, step: int
) -> float:
    """Clips the gradients to a norm and takes a step -> their norm before; TrainingError if not finite."""
    norm = finite("gradient", float(torch.nn.utils.clip_grad_norm_(parameters, max_norm)), step)
    optimizer.step()
    return norm


@dataclass(frozen=True)
class Schedule:
    """Learning rate: it rises linearly over the first `warmup` steps, then falls linearly to 0."""

    peak: float
    warmup: int
    steps: int

    def at(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / (self.warmup + 1)
        return self.peak * (self.steps - step) / max(1, self.steps - self.warmup)


def step_on(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[torch.nn.Parameter],
    batch: Sequence[Example],
    step: int,
) -> tuple[float, float, int]:
    """A step on the mean negative log-likelihood of a batch's completion tokens.

    Returns:
        The loss summed over the tokens, the norm of the gradient, and how many tokens they are.

    Raises:
        TrainingError: the loss or the gradient is NaN or infinite.
    """
    tokens = sum(len(completion) for _, completion in batch)
    losses = None
    while losses is None:
        optimizer.zero_grad(set_to_none=True)
        losses = _gradients(policy, batch, tokens)
        if losses is None:
            policy.training.shrink(min(policy.training.size, len(batch)))
    summed = finite("loss", math.fsum(losses) * tokens, step)
    return summed, clipped_step(optimizer, parameters, 1.0, step), tokens


def _gradients(policy: Policy, batch: Sequence[Example], tokens: int) -> list[float] | None:
    """Adds up the gradients of a batch, in parts that fit into memory -> the losses of the parts.

    None where memory ran out; the gradients are incomplete then.

    Args:
        tokens: completion tokens of the batch, by which the loss is divided.
    """
    size = min(policy.training.size, len(batch))
    losses = []
    try:
        for start in range(0, len(batch), size):
            logprobs_B_T, mask_B_T = policy.token_logprobs(batch[start : start + size])
            loss = -logprobs_B_T[mask_B_T].sum() / tokens
            loss.backward()
            losses.append(loss.item())
    except (MemoryError, RuntimeError) as error:
        if size == 1 or not out_of_memory(error):
            raise
        return None
    return losses


def fine_tune(
    policy: Policy,
    examples: Sequence[Example],
    *,
    lr: float,
    batch_size: int,
    epochs: int,
    stream_parts: tuple[object, ...],
    warmup: float | None = None,
) -> dict[str, float | None]:
    """Supervised fine-tuning of the adapter: AdamW on the mean negative log-likelihood of completion tokens.

    Prompts and padding have no loss. The optimizer is new each time, so a checkpoint needs the adapter alone.

    Args:
        examples: (prompt ids, completion ids), in the template that generation uses.
        stream_parts: (seed, cycle, purpose): order of the examples and dropout derive from it.
        warmup: share of the steps in which the learning rate rises to `lr`, to fall to 0 over the rest; None
            keeps it constant.

    Returns:
        `train/loss` (nats per token of the whole update), `train/grad_norm`, `train/steps`, `train/examples`.

    Raises:
        ValueError: no examples.
        TrainingError: a loss or a gradient that is NaN or infinite, or weights that did not change.
    """
    if not examples:
        raise ValueError("no examples to train on")
    parameters = policy.trainable()
    optimizer = adamw(parameters, lr, None)
    schedule = None
    if warmup is not None:
        steps = epochs * math.ceil(len(examples) / batch_size)
        schedule = Schedule(lr, int(warmup * steps), steps)
    losses: list[float] = []  # of each step, summed over its tokens
    norms: list[float] = []
    tokens = 0
    with updating(policy, lr, *stream_parts):
        for epoch in range(epochs):
            order = list(range(len(examples)))
            stream("order", epoch, *stream_parts).shuffle(order)
            for start in range(0, len(order), batch_size):
                batch = [examples[row] for row in order[start : start + batch_size]]
                step = len(losses) + 1
                if schedule is not None:
                    optimizer.param_groups[0]["lr"] = schedule.at(step - 1)
                loss, norm, count = step_on(policy, optimizer, parameters, batch, step)
                losses.append(loss)
                norms.append(norm)
                tokens += count
    return {
        "train/loss": math.fsum(losses) / tokens,
        "train/grad_norm": math.fsum(norms) / len(norms),
        "train/steps": float(len(losses)),
        "train/examples": float(len(examples)),
    }
