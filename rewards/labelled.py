"""The upper bound: truth itself as the reward. It uses labels, and every run and table that uses it says so.

No other module of the rewards knows what is right. Commands hand `Truth` to `rewards.registry.make_reward`, which cannot reach it.
"""

from __future__ import annotations

from collections.abc import Sequence

from envs.types import Score, Task
from envs.verify.truth import verify
from envs.verify.verdict import Verdict


class Truth:
    """1 where the command does what the reference does, 0 where it is wrong or invalid; abstains where it could not be executed."""

    inverter: str | None = None

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G]; `seed` is not used."""
        pairs = [
            (task, command)
            for task, commands in zip(tasks_P, commands_P_G, strict=True)
            for command in commands
        ]
        verdicts = iter(verify([task for task, _ in pairs], [command for _, command in pairs]))
        return [[_score(next(verdicts)) for _ in commands] for commands in commands_P_G]


def _score(verdict: Verdict) -> Score:
    return (
        Score(None, reason=verdict.reason)
        if verdict.status == "not_executed"
        else Score(float(verdict.correct))
    )
