"""What a model thinks of a given text: log-probabilities, entropies, divergence from its base; all in nats.

A pair is (token ids of a prompt, token ids of its completion). Axes: B sequences, T tokens, V tokens of the
vocabulary, and N completion tokens: those of all sequences, one after the other.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from agents.policy import prefix
from agents.policy.batches import Batches
from agents.policy.seeds import seeded

# Numbers of distributions that are in memory together beside the logits, where there are no gradients: 64 MB.
NUMBERS = 2**24
Pair = tuple[Sequence[int], Sequence[int]]


def token_logits(
    model: Any, pairs: Sequence[Pair], pad: int, before: int = 0, cache: Any = None
) -> tuple[Tensor, Tensor, Tensor]:
    """One forward pass over B sequences, with gradients.

    Args:
        before: how many tokens at the start of every prompt are in `cache` already.

    Returns:
        Float32 logits of each completion token (N, V), these tokens (N,), and mask_B_T, True where they are.
        T is the length of the longest sequence minus 1, `before` left out.
    """
    for prompt, completion in pairs:
        prefix.check_room(model, len(prompt), len(completion))
    pairs = [(prompt[before:], completion) for prompt, completion in pairs]
    width = max(map(_length, pairs))
    inputs = torch.full((len(pairs), width), pad)
    attention = torch.zeros_like(inputs)
    wanted = torch.zeros_like(inputs, dtype=torch.bool)
    for row, (prompt, completion) in enumerate(pairs):
        end = len(prompt) + len(completion)
        inputs[row, :end] = torch.tensor([*prompt, *completion])
        attention[row, :end] = 1
        wanted[row, len(prompt) : end] = True
    device = next(model.parameters()).device
    attention = torch.cat([torch.ones(len(pairs), before, dtype=attention.dtype), attention], dim=1)
    inputs, attention, wanted = inputs.to(device), attention.to(device), wanted.to(device)
    mask = wanted[:, 1:]
    read = {"use_cache": False} if cache is None else {"use_cache": True, "past_key_values": cache}
    with _output_at(model, mask) as narrowed:
        logits = model(input_ids=inputs, attention_mask=attention, **read).logits
    logits_N_V = logits[0] if narrowed else logits[:, :-1][mask]
    return logits_N_V.float(), inputs[:, 1:][mask], mask


def logits_of(model: Any, pairs: Sequence[Pair], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `token_logits`, but what all prompts begin with is read once. Call it without gradients."""
    before = prefix.common([prompt for prompt, _ in pairs])
    cache = prefix.read(model, pairs[0][0][:before], len(pairs)) if before else None
    return token_logits(model, pairs, pad, before if cache is not None else 0, cache)


@contextlib.contextmanager
def _output_at(model: Any, mask_B_T: Tensor) -> Iterator[list[bool]]:
    """Context in which the output embeddings see N hidden states as one sequence, and compute no others.

    The logits of the prompts are most of a forward pass's memory where the vocabulary is large. Whatever a
    model does to its logits afterwards, such as a soft cap, it does to these.

    Args:
        mask_B_T: where the tokens are that the logits are of: the state before each token is kept.

    Yields:
        a list that is not empty after the forward pass if it worked; a model may not call its embeddings.
    """
    narrowed: list[bool] = []

    def select(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states_B_T_H, *others = inputs
        narrowed.append(True)
        return (states_B_T_H[:, :-1][mask_B_T][None], *others)

    output = model.get_output_embeddings()
    hook = output.register_forward_pre_hook(select)
    try:
        yield narrowed
    finally:
        hook.remove()


@contextlib.contextmanager
def hidden_states(model: Any) -> Iterator[list[Tensor]]:
    """Context that keeps the last hidden states of each forward pass, (B, T, H).

    In any causal language model they are the input of the output embeddings. Enter it before `token_logits`,
    which hands these a part of the states.
    """
    kept: list[Tensor] = []
    output = model.get_output_embeddings()
    hook = output.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    try:
        yield kept
    finally:
        hook.remove()


def scalar_head(model: Any, purpose: str, seed: int) -> torch.nn.Linear:
    """A linear layer from the last hidden state to a number, with small weights that follow from the seed."""
    with seeded(purpose, seed), torch.no_grad():
        head = torch.nn.Linear(model.get_output_embeddings().weight.shape[1], 1)
        head.weight.normal_(std=1 / (head.in_features + 1))
        head.bias.zero_()
    return head


def token_logprobs(model: Any, pairs: Sequence[Pair], pad: int) -> tuple[Tensor, Tensor]:
    """With gradients: logprobs_B_T, which is 0 outside the completions, and mask_B_T as in `token_logits`."""
    logits_N_V, targets_N, mask_B_T = token_logits(model, pairs, pad)
    logprobs_N = logits_N_V.log_softmax(-1).gather(1, targets_N[:, None])[:, 0]
    logprobs_B_T = torch.zeros(mask_B_T.shape, device=mask_B_T.device)
    return logprobs_B_T.masked_scatter(mask_B_T, logprobs_N), mask_B_T


def logprobs(model: Any, pairs: Sequence[Pair], pad: int, batches: Batches) -> list[list[float]]:
    """Log-probability of each completion token, without gradients."""

    def score(batch: Sequence[Pair], first: int) -> list[list[float]]:
        with torch.no_grad():
            logits_N_V, targets_N, mask_B_T = logits_of(model, batch, pad)
            values: list[float] = []
            rows = _rows(logits_N_V)
            for logits, targets in zip(logits_N_V.split(rows), targets_N.split(rows), strict=True):
                values += logits.log_softmax(-1).gather(1, targets[:, None])[:, 0].tolist()
        left = iter(values)
        return [list(itertools.islice(left, length)) for length in mask_B_T.sum(1).tolist()]

    return batches.longest_first(pairs, _length, score)


def entropies(
    model: Any, pairs: Sequence[Pair], pad: int, batches: Batches
) -> list[tuple[float, float] | None]:
    """Mean entropy and self-certainty over each completion's tokens; None for an empty completion.

    Self-certainty is KL(uniform || p) = -log V - mean over the vocabulary of log p (Zhao et al. 2025,
    arXiv:2505.19590).
    """

    def measure(batch: Sequence[Pair], first: int) -> list[tuple[float, float]]:
        with torch.no_grad():
            logits_N_V, _, mask_B_T = logits_of(model, batch, pad)
            parts = []
            for logits in logits_N_V.split(_rows(logits_N_V)):
                logprobs = logits.log_softmax(-1)
                entropy = -(logprobs.exp() * logprobs).sum(-1)
                parts.append((entropy, -math.log(logprobs.shape[-1]) - logprobs.mean(-1)))
        entropy_N, certainty_N = (torch.cat(values) for values in zip(*parts, strict=True))
        lengths = mask_B_T.sum(1).tolist()
        rows = zip(entropy_N.split(lengths), certainty_N.split(lengths), strict=True)
        return [(float(entropy.mean()), float(certainty.mean())) for entropy, certainty in rows]

    with_tokens = [place for place, (_, completion) in enumerate(pairs) if completion]
    measured = batches.longest_first([pairs[place] for place in with_tokens], _length, measure)
    by_place = dict(zip(with_tokens, measured, strict=True))
    return [by_place.get(place) for place in range(len(pairs))]


def entropy_and_kl(
    model: Any, pairs: Sequence[Pair], pad: int, batches: Batches
) -> tuple[float | None, float | None]:
    """Mean entropy of the next-token distribution, and its mean KL to the base model's, over all tokens.

    Both are None where there are no completion tokens.
    """

    def measure(batch: Sequence[Pair], first: int) -> list[tuple[float, float, int]]:
        with torch.no_grad():
            own_N_V = logits_of(model, batch, pad)[0]
            with model.disable_adapter():
                base_N_V = logits_of(model, batch, pad)[0]
        rows, parts = _rows(own_N_V), []
        for own_logits, base_logits in zip(own_N_V.split(rows), base_N_V.split(rows), strict=True):
            own, base = own_logits.log_softmax(-1), base_logits.log_softmax(-1)
            entropy = -(own.exp() * own).sum().item()
            divergence = (own.exp() * (own - base)).sum().item()
            parts.append((entropy, divergence, len(own)))
        return parts

    with_tokens = [pair for pair in pairs if pair[1]]
    sums = batches.run(with_tokens, measure)
    tokens = sum(count for _, _, count in sums)
    if not tokens:
        return None, None
    entropy = sum(entropy for entropy, _, _ in sums)
    divergence = sum(divergence for _, divergence, _ in sums)
    return entropy / tokens, divergence / tokens


def _rows(logits_N_V: Tensor) -> int:
    """How many distributions to compute together."""
    return max(1, NUMBERS // logits_N_V.shape[1])


def _length(pair: Pair) -> int:
    return len(pair[0]) + len(pair[1])
