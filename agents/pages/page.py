"""One HTML page that needs nothing else: no script, no font, no network; its charts are inside it.

What models and files wrote is escaped, and characters that hide or reorder text are shown as `⟨U+202E⟩`. The
same values give the same bytes.
"""

from __future__ import annotations

import base64
import functools
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from agents.cli.display import interval, number, p_value, signed

LONGEST = 2000  # characters of one text; what is cut is in the JSON file next to the page
# Drawn as nothing, though Unicode counts them as letters or marks.
BLANKS = "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
HIDDEN = {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}


def write_page(template: str, path: Path, **values: Any) -> None:
    """Renders a template of this folder; functions among the values can be called in it.

    Raises:
        OSError: the file cannot be written.
    """

    def chart(name: str, text: str, caption: str = "") -> Markup:
        return image(path.parent / name, text, caption)

    page = _environment().get_template(template).render(chart=chart, **values)
    path.write_text(page, encoding="utf-8", newline="\n")


@functools.cache
def _environment() -> Environment:
    """Made once, since it takes longer to read the templates than to fill them in."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "signed": signed,
        "interval": interval,
        "p_value": p_value,
        "thousands": thousands,
        "setting": setting,
        "words": words,
    }
    return environment


# ---- text ----


def visible(value: Any) -> Any:
    """Text without a character that could hide, reorder or overwrite other text; other values as they are."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    if len(value) > LONGEST:
        value = f"{value[:LONGEST]} … and {len(value) - LONGEST} more characters"
    return "".join(map(_shown, value))


def _shown(character: str) -> str:
    if character == "\n":
        return "↵\n"
    if character == " ":
        return character
    category = unicodedata.category(character)
    is_selector = "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
    if category in HIDDEN or category == "Zs" or character in BLANKS or is_selector:
        return f"⟨U+{ord(character):04X}⟩"
    return character


def words(name: str) -> str:
    """A key of a metrics or settings file as words."""
    return name.replace("_", " ")


def thousands(value: float | None) -> str:
    """A count or a number of seconds."""
    return "–" if value is None else f"{value:,.0f}"


def setting(value: Any) -> str:
    """A setting for reading: short numbers, lists with commas."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {setting(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(setting, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


# ---- charts ----


def image(path: Path, text: str, caption: str = "") -> Markup:
    """A PNG file as a figure within the page; nothing where there is no file.

    Args:
        text: what the chart shows, for those who cannot see it.
        caption: how to read it.
    """
    if not path.is_file():
        return Markup("")
    data = base64.b64encode(path.read_bytes()).decode()
    figure = Markup('<img class="chart" alt="{}" src="data:image/png;base64,{}">').format(text, data)
    if caption:
        figure += Markup('<figcaption class="how">{}</figcaption>').format(caption)
    return Markup("<figure>{}</figure>").format(figure)
