"""What verification says of one command.

It is not in `envs.types`: training code must not even be able to name it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["correct", "wrong", "invalid", "not_executed"]


@dataclass(frozen=True)
class Verdict:
    """What one command does, compared with what its task's reference does.

    Attributes:
        status: `correct`: the same. `wrong`: it runs, or has a meaning, and does something else.
            `invalid`: it is not a command of the domain: it does not parse, has an unknown option, or names
            an unknown tool. `not_executed`: nothing can be said: there is no sandbox, no reference, or the
            reference fails. Such a command is never counted as wrong.
        reason: why, in a few words on one line; empty for `correct`.
        differed: what differed, shortened, on one line; empty where nothing was compared.
        seconds: time spent on it.
    """

    status: Status
    reason: str = ""
    differed: str = ""
    seconds: float = 0.0

    @property
    def correct(self) -> bool:
        """Whether it is right; False where nothing can be said."""
        return self.status == "correct"
