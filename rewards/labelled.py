"""The upper bound: truth itself as the reward. It uses labels, and every run and table that uses it says so.

No other module of the rewards reaches labels. Commands hand `Truth` to `rewards.registry.make_reward`.
"""

from __future__ import annotations

from collections.abc import Sequence

from envs.types import Score, Task
from envs.verify.truth import verify
from rewards.base import grouped, pairs_of


class Truth:
    """1 where the command does what the reference does, else 0. Abstains where it could not be executed."""

    inverter: str | None = None

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G]; `seed` is not used."""
        pairs = pairs_of(tasks_P, commands_P_G)
        verdicts = verify([task for task, _ in pairs], [command for _, command in pairs])
        scores = []
        for verdict in verdicts:
            if verdict.status == "not_executed":
                scores.append(Score(None, reason=verdict.reason))
            else:
                scores.append(Score(float(verdict.correct)))
        return grouped(scores, commands_P_G)
