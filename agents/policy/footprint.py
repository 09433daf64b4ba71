"""How much memory a model takes, by its configuration alone, before any weight is loaded.

Activations are estimates: docs/PERFORMANCE.md has them beside what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from agents.policy.lora import Lora, with_lora

# A weight of NF4: half a byte, and a scale in 8 bits for each 64 of them.
BYTES_4BIT = 0.5 + 1 / 64
MOMENTS = 12  # bytes of gradient and AdamW's two moments for a float32 parameter


@dataclass(frozen=True)
class Work:
    """What is done at once.

    Attributes:
        rows: sequences that are written or scored together.
        batch: examples whose gradients are computed together.
        prompt, answer: tokens of a sequence.
    """

    rows: int
    batch: int
    prompt: int
    answer: int

    @property
    def tokens(self) -> int:
        """Tokens of a whole sequence."""
        return self.prompt + self.answer


@dataclass(frozen=True)
class Shape:
    """What of a model decides its memory and its speed.

    Attributes:
        weights: numbers in its weights, those of the adapter included.
        trained: numbers in the adapter.
        weight_bytes: of all weights.
        element: bytes of a number in the states: 2 or 4.
        layers, width, inner, vocabulary: as the configuration has them.
        cached: numbers that the cache keeps for a token.
        adapted: widths of the inputs of the adapted layers of one layer, summed up.
        checkpointing: whether activations are computed again in the backward pass.
    """

    weights: int
    trained: int
    weight_bytes: int
    element: int
    layers: int
    width: int
    inner: int
    vocabulary: int
    cached: int
    adapted: int
    checkpointing: bool


def shape_of(config: Any, lora: Lora, dtype: torch.dtype, load_in_4bit: bool) -> Shape:
    """The shape of a model of this configuration with an adapter. Nothing is loaded or allocated."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    output = model.get_output_embeddings()
    packed = 0
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not output:
            packed += module.weight.numel()
    base = sum(weight.numel() for weight in model.parameters())
    adapted = with_lora(model, lora, 0)
    trained, widths = 0, 0
    for name, weight in adapted.named_parameters():
        if weight.requires_grad:
            trained += weight.numel()
            widths += weight.shape[-1] if "lora_A" in name else 0
    text = config.get_text_config()
    layers = text.num_hidden_layers
    inner = getattr(text, "intermediate_size", None)
    element = dtype.itemsize
    weight_bytes = base * element + trained * 4
    if load_in_4bit:
        weight_bytes -= int(packed * (element - BYTES_4BIT))
    return Shape(
        weights=base + trained,
        trained=trained,
        weight_bytes=weight_bytes,
        element=element,
        layers=layers,
        width=text.hidden_size,
        inner=inner if isinstance(inner, int) and inner else 4 * text.hidden_size,
        vocabulary=text.vocab_size,
        cached=cached_numbers(text),
        adapted=widths // layers,
        checkpointing=load_in_4bit,
    )


def cached_numbers(text: Any) -> int:
    """How many numbers the cache keeps for a token, by a text model's configuration; 0 without attention."""
    heads = getattr(text, "num_attention_heads", None)
    if not heads:
        return 0
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return int(2 * text.num_hidden_layers * (getattr(text, "num_key_value_heads", None) or heads) * width)


def memory(shape: Shape, work: Work) -> Mapping[str, int]:
    """Bytes at the peak of `writing`, `scoring` and `training`, weights included."""
    logits = 4 * shape.vocabulary  # of a token
    seen = work.rows * work.tokens
    written = seen * shape.cached * shape.element + 3 * work.rows * logits
    states = seen * (4 * shape.width + 3 * shape.inner) * shape.element
    scored = states + 3 * work.rows * work.answer * logits
    learnt = work.batch * work.tokens
    of_layer = learnt * ((10 * shape.width + 4 * shape.inner) * shape.element + 8 * shape.adapted)
    kept = shape.layers * of_layer
    if shape.checkpointing:
        kept = of_layer + shape.layers * learnt * shape.width * shape.element
    kept += 3 * work.batch * work.answer * logits + MOMENTS * shape.trained
    peaks = {"writing": written, "scoring": scored, "training": kept}
    return {name: shape.weight_bytes + more for name, more in peaks.items()}
