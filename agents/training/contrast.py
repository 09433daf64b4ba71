"""Pairs of a better and a worse command of one task: by their scores, and what trainers on pairs share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agents.training.config import TrainConfig

if TYPE_CHECKING:
    from agents.training.rollouts import Batch

Values = Sequence[Sequence["float | None"]]


@dataclass(frozen=True)
class PairConfig(TrainConfig):
    """The settings that every trainer on pairs has."""

    beta: float = 0.1
    """Pull to the reference: the loss sees beta times the log-ratio of policy to reference."""
    batch_size: int = 4
    """Pairs per training step."""
    lora_dropout: float = 0.0
    """Dropout of the LoRA adapter; in [0, 1). 0 by default: policy and reference would differ at random."""

    def check(self) -> None:
        """Raises InputError for a value out of range, an unknown reward or a faulty domain."""
        super().check()
        self._require("beta", 0 < self.beta < math.inf, "must be above 0")

    @property
    def of_update(self) -> dict[str, Any]:
        """What `train_on_pairs` takes from the settings."""
        return {name: getattr(self, name) for name in ("lr", "beta", "batch_size", "epochs")}


def pairs_of(
    values_P_G: Values,
    texts_P_G: Sequence[Sequence[str]],
    margin: float,
    acceptable_P_G: Values | None = None,
) -> list[tuple[int, int]]:
    """Positions of (chosen, rejected) for each task that makes a pair, counted task after task.

    Of equal scores the first one written is taken.

    Args:
        values_P_G: scores, G candidates for each of P tasks; None for a candidate that is left out.
        texts_P_G: their commands; the two of a pair differ.
        margin: the smallest difference of score; equal scores never make a pair.
        acceptable_P_G: scores, None for a candidate that must not be chosen; by default all may be.
    """
    pairs = []
    start = 0
    for values, texts, acceptable in zip(values_P_G, texts_P_G, acceptable_P_G or values_P_G, strict=True):
        scored = _with_scores(values)
        choices = _with_scores(acceptable)
        if choices:
            best, chosen = max(choices, key=_score)
            worst, rejected = min(scored, key=_score)
            if best > worst and best - worst >= margin and texts[chosen] != texts[rejected]:
                pairs.append((start + chosen, start + rejected))
        start += len(values)
    return pairs


def _with_scores(values: Sequence[float | None]) -> list[tuple[float, int]]:
    return [(value, row) for row, value in enumerate(values) if value is not None]


def _score(candidate: tuple[float, int]) -> float:
    return candidate[0]


def pairs_of_batch(batch: Batch, margin: float) -> list[tuple[int, int]]:
    """The pairs of a batch.

    A truncated command has no end to learn, so it is in none. One with a closed gate may only be rejected.
    """
    values = [[rollout.complete_score for rollout in group] for group in batch.groups]
    texts = [[rollout.command for rollout in group] for group in batch.groups]
    return pairs_of(values, texts, margin, batch.acceptable)


def score_margin(batch: Batch, pairs: Sequence[tuple[int, int]]) -> float:
    """The mean difference of score in a pair."""
    rollouts = batch.rollouts
    differences = []
    for chosen, rejected in pairs:
        differences.append((rollouts[chosen].score.value or 0.0) - (rollouts[rejected].score.value or 0.0))
    return math.fsum(differences) / len(pairs)
