"""Who acts and learns. A file here is a command, `python -m agents.NAME`; a folder is shared machinery."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, NoReturn

PROJECT = "inversion"

if not TYPE_CHECKING:  # a checker would believe that every name is there

    def __getattr__(name: str) -> NoReturn:
        """Says which package this is to who imports a name of another project's `agents` from it."""
        if name.startswith("_") or importlib.util.find_spec(f"{__name__}.{name}") is not None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        raise ImportError(
            f"no {name} in the package agents of the project {PROJECT} ({__path__[0]}), which hides another"
            " project's package agents: give each an environment of its own"
        )
