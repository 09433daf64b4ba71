"""What a model thinks of a given text: log-probabilities, entropies, divergence from its base; all in nats.

A pair is (token ids of a prompt, token ids of its completion). Axes: B sequences, T tokens, V tokens of the
vocabulary, and N completion tokens: those of all sequences, one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from agents.policy.batches import Batches

Pair = tuple[Sequence[int], Sequence[int]]


def token_logits(model: Any, pairs: Sequence[Pair], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """One forward pass over B sequences, with gradients.

    Returns:
        Float32 logits of each completion token (N, V), these tokens (N,), and mask_B_T, True where they are.
        T is the length of the longest sequence minus 1.
    """
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
    inputs, attention, wanted = inputs.to(device), attention.to(device), wanted.to(device)
    # The logits at a position are of the token after it.
    logits = model(input_ids=inputs, attention_mask=attention, use_cache=False).logits[:, :-1]
    mask = wanted[:, 1:]
    return logits[mask].float(), inputs[:, 1:][mask], mask


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
            logprobs_B_T, mask_B_T = token_logprobs(model, batch, pad)
        rows = zip(logprobs_B_T, mask_B_T, strict=True)
        return [values_T[mask_T].tolist() for values_T, mask_T in rows]

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
            logits_N_V, _, mask_B_T = token_logits(model, batch, pad)
            logprobs_N_V = logits_N_V.log_softmax(-1)
        entropy_N = -(logprobs_N_V.exp() * logprobs_N_V).sum(-1)
        certainty_N = -math.log(logprobs_N_V.shape[-1]) - logprobs_N_V.mean(-1)
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
            own_N_V = token_logits(model, batch, pad)[0].log_softmax(-1)
            with model.disable_adapter():
                base_N_V = token_logits(model, batch, pad)[0].log_softmax(-1)
        entropy = -(own_N_V.exp() * own_N_V).sum().item()
        divergence = (own_N_V.exp() * (own_N_V - base_N_V)).sum().item()
        return [(entropy, divergence, len(own_N_V))]

    with_tokens = [pair for pair in pairs if pair[1]]
    sums = batches.run(with_tokens, measure)
    tokens = sum(count for _, _, count in sums)
    if not tokens:
        return None, None
    entropy = sum(entropy for entropy, _, _ in sums)
    divergence = sum(divergence for _, divergence, _ in sums)
    return entropy / tokens, divergence / tokens


def _length(pair: Pair) -> int:
    return len(pair[0]) + len(pair[1])
