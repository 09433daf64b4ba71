"""Trainers learn: a trivial reward, which the embedded model can satisfy at will, rises past a bound."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from agents.policy.load import load_policy
from agents.rejection_sft import select
from agents.training.rollouts import roll_out
from agents.training.update import examples_of, fine_tune
from envs.domain import load_domain
from envs.source import Templates
from envs.types import Score, Task


def few_options(
    tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
) -> list[list[Score]]:
    """1 for a command without a dash, else 0."""
    return [[Score(float("-" not in command)) for command in commands] for commands in commands_P_G]


@pytest.mark.slow
def test_rejection_sampling_raises_a_trivial_reward() -> None:
    policy = load_policy("embedded")
    source = Templates([load_domain("shell")])
    means = []
    for cycle in range(4):
        batch = roll_out(
            policy,
            source,
            few_options,
            tasks=30,
            candidates=3,
            temperature=0.7,
            max_new_tokens=32,
            stream=(0, cycle, "before"),
        )
        values = [[rollout.score.value for rollout in group] for group in batch.groups]
        means.append(sum(value or 0.0 for row in values for value in row) / 90)
        accepted = select(values, "threshold", 0.5, 1.0)
        examples = examples_of(policy, [batch.rollouts[row] for row in accepted])
        fine_tune(policy, examples, lr=5e-3, batch_size=4, epochs=3, stream_parts=(0, cycle, "train"))
    assert means[0] < 0.4
    assert means[-1] > 0.7
