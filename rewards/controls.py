"""Controls: rewards that know nothing, on the same budget. A reward that does not beat them has shown nothing."""

from __future__ import annotations

from collections.abc import Sequence

from envs.grammar import stream
from envs.types import Score, Task


class Random:
    """Uniform noise in [0, 1): selection without information."""

    def __call__(self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0) -> list[list[Score]]:
        """Scores [P][G] from the seed and the position alone."""
        rng = stream("random reward", seed)
        return [
            [Score(rng.random()) if command.strip() else Score(None, reason="empty command") for command in commands]
            for commands in commands_P_G
        ]
