"""Torch's random generators from (seed, cycle, purpose, index)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from envs.streams import unit


def seed_of(*parts: object) -> int:
    """A 63-bit seed for torch from (seed, cycle, purpose, index)."""
    return int(unit(*parts) * 2**63)


@contextlib.contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """Torch's generators as (seed, cycle, purpose, index) says; the state outside is left as it was."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed_of(*parts))
        yield
