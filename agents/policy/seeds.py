"""Torch's random generators, seeded like everything here from (seed, cycle, purpose, index)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from envs.streams import seed_of


@contextlib.contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """Context in which torch's generators begin at these parts; the state outside is left as it was."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed_of(*parts))
        yield
