"""What prompts have in common is read once: keys and values of their beginning, for every row of a batch.

A system message, the words that ask, and examples before them are the same for all prompts of a domain. With
a chat template they are often longer than all that differs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from envs.types import InputError

# What a model's `forward` must take for the beginning of its rows to be read before the rest.
NEEDED = {"position_ids", "past_key_values", "logits_to_keep"}
WORTH_IT = 24  # tokens; to read fewer once saves little


def reads_ahead(model: Any) -> bool:
    """Whether the model may be able to go on from a cache of what was read before."""
    return set(inspect.signature(model.get_base_model().forward).parameters) >= NEEDED


def window(model: Any) -> float:
    """How many tokens back the model sees in every layer; infinite where nothing limits it."""
    size = getattr(model.config.get_text_config(), "sliding_window", None)
    return float(size) if size else math.inf


def check_room(model: Any, prompt: int, answer: int) -> None:
    """Raises InputError where a prompt and its answer take more tokens than the model has positions."""
    config = model.config.get_text_config()
    sizes = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")]
    positions = next((size for size in sizes if isinstance(size, int) and size > 0), None)
    if positions is None or prompt + answer <= positions:
        return
    where = (
        f"a prompt of {prompt:,} tokens and an answer of {answer:,} in the model's {positions:,} positions"
    )
    fix = f"ask for {positions - prompt:,} or fewer"
    if prompt >= positions:
        fix = "shorten the task, give fewer --shots, or give another --model"
    raise InputError(f"--max-new-tokens: no room for {where}: {fix}")


def has_rows(cache: Any) -> bool:
    """Whether rows of a cache can be chosen. The states of linear attention and of convolutions have none."""
    if type(cache) is not DynamicCache:
        return False
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def common(prompts: Sequence[Sequence[int]]) -> int:
    """How many token ids the prompts begin with alike; 0 where reading them once is not worth it.

    The last token of every prompt is left out: the state after it predicts the completion.
    """
    ordered = sorted(map(tuple, prompts))
    first, last = ordered[0], ordered[-1]
    most = min(map(len, prompts)) - 1
    length = 0
    while length < most and first[length] == last[length]:
        length += 1
    return length if length >= WORTH_IT and len(prompts) > 1 else 0


def read(model: Any, ids: Sequence[int], rows: int) -> Any:
    """Keys and values of some token ids for each of `rows` rows; None where the model keeps none.

    Call it without gradients.
    """
    if not reads_ahead(model):
        return None
    device = next(model.parameters()).device
    cache = model(
        input_ids=torch.tensor([list(ids)], device=device), use_cache=True, logits_to_keep=1
    ).past_key_values
    if not has_rows(cache):
        return None
    every: Tensor = torch.zeros(rows, dtype=torch.long, device=device)
    cache.batch_select_indices(every)
    return cache
