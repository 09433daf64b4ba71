"""Curves of several runs as one TensorBoard folder: a sub-run for each, laid over each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from agents.studies.runs import RunRecord

PATTERN = "events.out.tfevents.*"


def write_events(
    folder: Path,
    records: Sequence[RunRecord],
    tag_of: Callable[[RunRecord, str], str],
    layout: Mapping[str, Mapping[str, Sequence[str]]],
) -> None:
    """Writes folder/<name of the run>/events... from each run's metrics; what was there is replaced.

    Args:
        tag_of: (run, metric) -> its tag; curves of one tag are laid over each other.
        layout: TensorBoard's CUSTOM SCALARS page: category -> chart -> tags.

    Raises:
        OSError: the folder cannot be written.
    """
    for old in folder.glob(f"*/{PATTERN}"):
        old.unlink()
    for place, record in enumerate(records):
        began = (record.folder / "config.yaml").stat().st_mtime
        with SummaryWriter(str(folder / record.name.replace("/", "-"))) as writer:
            if place == 0:
                writer.add_custom_scalars(_multiline(layout))
            for row in record.metrics:
                step = int(row["step"])
                for name, value in row.items():
                    if name not in ("step", "cycle"):
                        writer.add_scalar(tag_of(record, name), value, step, walltime=began + step)


def _multiline(layout: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, dict[str, list[object]]]:
    """The layout as `add_custom_scalars` takes it, which takes tags for regular expressions."""
    found: dict[str, dict[str, list[object]]] = {}
    for category, charts in layout.items():
        found[category] = {}
        for chart, tags in charts.items():
            found[category][chart] = ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]]
    return found
