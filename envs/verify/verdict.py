"""What verification says of one command. It lives here and not in `envs.types`, so that training code cannot even name it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["correct", "wrong", "invalid", "not_executed"]


@dataclass(frozen=True)
class Verdict:
    """What one command does, compared with what its task's reference does.

    Attributes:
        status: `correct`: the same. `wrong`: it ran (or has a meaning) and does something else. `invalid`: it is no command of the
            domain: it does not parse, has an unknown option, names a tool that is not there. `not_executed`: nothing can be said of
            it: no sandbox, no reference, or a reference that fails; never counted as wrong.
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
