"""Random streams. Every draw comes from (seed, cycle, purpose, index): equal settings give equal bytes."""

from __future__ import annotations

import hashlib
import random


def unit(*parts: object) -> float:
    """A uniform number in [0, 1) that depends on the parts alone, on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def stream(*parts: object) -> random.Random:
    """The random stream of (seed, cycle, purpose, index, ...): equal parts, equal numbers."""
    return random.Random("\x1f".join(map(str, parts)))


def seed_of(*parts: object) -> int:
    """A 63-bit seed, for random generators that are not Python's: equal parts, equal seeds."""
    return int(unit(*parts) * 2**63)
