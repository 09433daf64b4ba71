"""The report as one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_page(report: Mapping[str, Any], path: Path) -> None:
    """Writes report.html."""
    path.write_text(str(report), encoding="utf-8")
