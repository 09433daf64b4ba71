"""Sets of whole numbers (ports, addresses) as ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterable

Range = tuple[int, int]  # both ends included


def merge(ranges: Iterable[Range]) -> list[Range]:
    """As few ranges as cover the same numbers, in order."""
    merged: list[Range] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return merged


def show_ranges(ranges: Iterable[Range], show: Callable[[int], str] = str) -> str:
    """Ranges as text: 22,80-90."""
    shown = []
    for low, high in ranges:
        shown.append(show(low) if low == high else f"{show(low)}-{show(high)}")
    return ",".join(shown)
