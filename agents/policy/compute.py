"""With which numbers and how many threads a model computes on a CPU: as asked, or by a short measurement.

Whether bfloat16 is faster depends on the processor: 1.8 times with AVX512-BF16, a seventh as fast without.
Two threads can be slower than one while another program runs. What was chosen is recorded with a run, since
the last bits of its results depend on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

SMALL = 20_000_000  # parameters; sharing the matrices of a smaller model costs more than it saves
ROWS = 64  # of the matrix that is multiplied: a batch of short sequences, or one of the steps of many
LARGEST = 2048  # rows and columns of the weights that are measured
SECONDS = 0.1  # for each of the three measurements, after a first call that does not count
FASTER = 1.5  # times as fast as float32, for bfloat16, which is less exact; as one thread, for more threads


@dataclass(frozen=True)
class Compute:
    """How a model computes.

    Attributes:
        dtype: `float32`, `bfloat16` or `float16`.
        threads: of the CPU.
        measured: how many times as fast `bfloat16` was as float32, and `2 threads` as one; what was measured.
    """

    dtype: str
    threads: int
    measured: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """Such as `float32, 1 thread (bfloat16 is 0.13 times as fast)`."""
        text = f"{self.dtype}, {self.threads} thread{'s' if self.threads > 1 else ''}"
        facts = []
        for name, times in self.measured.items():
            facts.append(f"{name} {'is' if name == 'bfloat16' else 'are'} {times:.2g} times as fast")
        return f"{text} ({', '.join(facts)})" if facts else text


def on_cpu(config: Any, dtype: str, threads: int | None) -> Compute:
    """Chooses for a model on a CPU.

    Args:
        config: of the model, as transformers has it.
        dtype: `float32`, `bfloat16`, or `auto`: bfloat16 where it is clearly faster.
        threads: None for all that PyTorch has where they are clearly faster than one.
    """
    text = config.get_text_config()
    width, inner = getattr(text, "hidden_size", 0), getattr(text, "intermediate_size", 0)
    if not isinstance(inner, int) or not inner:  # a list in a few models, and not every model names it
        inner = 4 * width
    if not width or parameters(text) < SMALL:
        return Compute("float32" if dtype == "auto" else dtype, threads or 1)
    weights = torch.randn(min(inner, LARGEST), min(width, LARGEST))
    rows = torch.randn(ROWS, weights.shape[1])
    measured = {}
    every = torch.get_num_threads()
    try:
        if dtype == "auto":
            torch.set_num_threads(threads or 1)
            measured["bfloat16"] = bfloat16_speed(rows, weights)
            dtype = "bfloat16" if measured["bfloat16"] >= FASTER else "float32"
        if threads is None and every > 1:
            kind = getattr(torch, dtype)
            rows, weights = rows.to(kind), weights.to(kind)
            torch.set_num_threads(1)
            alone = mean_seconds(lambda: rows @ weights.T)
            torch.set_num_threads(every)
            measured[f"{every} threads"] = alone / mean_seconds(lambda: rows @ weights.T)
            threads = every if measured[f"{every} threads"] >= FASTER else 1
    finally:
        torch.set_num_threads(every)
    return Compute(dtype, threads or 1, measured)


def bfloat16_speed(rows: torch.Tensor, weights: torch.Tensor) -> float:
    """How many times as fast as float32 `rows @ weights.T` is."""
    exact = min(seconds(lambda: rows @ weights.T))
    short_rows, short_weights = rows.bfloat16(), weights.bfloat16()
    return exact / min(seconds(lambda: short_rows @ short_weights.T))


def parameters(text: Any) -> int:
    """About how many parameters a model of this configuration has: 12 w^2 a layer, and the embedding."""
    layers = getattr(text, "num_hidden_layers", 0)
    return 12 * layers * int(text.hidden_size) ** 2 + int(text.vocab_size) * int(text.hidden_size)


def seconds(call: Callable[[], object]) -> list[float]:
    """How long each of some calls takes."""
    call()
    taken: list[float] = []
    end = time.perf_counter() + SECONDS
    while not taken or time.perf_counter() < end:
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return taken


def mean_seconds(call: Callable[[], object]) -> float:
    """How long a call takes on average: while another program runs, the quickest of many says little."""
    taken = seconds(call)
    return sum(taken) / len(taken)
