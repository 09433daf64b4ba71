"""One HTML page that needs nothing else: no script, no font, no network; its charts are inside it.

What models and files wrote is escaped, and characters that hide or reorder text are shown by their number.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from agents.evaluation.html import page_environment


def write_page(template: str, path: Path, filters: Mapping[str, Any], **values: Any) -> None:
    """Renders a template of this folder.

    Raises:
        OSError: the file cannot be written.
    """
    environment = page_environment(Path(__file__).parent)
    environment.filters |= {
        "thousands": lambda value: "–" if value is None else f"{value:,.0f}",
        "value": setting,
        **filters,
    }
    folder = path.parent
    environment.globals["chart"] = lambda name, text: chart(folder / name, text)
    path.write_text(environment.get_template(template).render(**values), encoding="utf-8", newline="\n")


def chart(path: Path, text: str) -> Markup:
    """A PNG file as an image within the page; nothing where there is none."""
    if not path.is_file():
        return Markup("")
    data = base64.b64encode(path.read_bytes()).decode()
    return Markup('<img class="chart" alt="{}" src="data:image/png;base64,{}">').format(text, data)


def setting(value: Any) -> str:
    """A setting for reading: numbers in short, lists with commas."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {setting(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(setting, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
