"""What a study found, as files in its folder: study.json, charts, STUDY.md and index.html."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.cli.files import write_json
from agents.pages.page import write_page
from agents.studies.answer import (
    answer,
    capitalized,
    notes,
    reference_of,
    share,
    share_interval,
    took,
    transfer_domains,
)
from agents.studies.figures import draw
from agents.studies.markdown import failure, markdown


def write_study(study: Mapping[str, Any], folder: Path) -> None:
    """Writes everything; the same numbers give the same bytes.

    Raises:
        OSError: a file cannot be written.
    """
    write_json(folder / "study.json", study)
    draw(study, folder)
    (folder / "STUDY.md").write_text(markdown(study, folder), encoding="utf-8")
    write_page(
        "study.html.jinja",
        folder / "index.html",
        study=study,
        answer=answer(study),
        notes=notes(study),
        transfer=transfer_domains(study),
        reference=reference_of(study),
        failure=failure,
        share=share,
        share_interval=share_interval,
        took=took,
        capitalized=capitalized,
    )
