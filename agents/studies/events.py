"""Curves of several runs as one TensorBoard folder: a sub-run each, the same tags, and a layout that lays them over each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from agents.studies.runs import RunRecord

PATTERN = "events.out.tfevents.*"


def write_events(
    folder: Path,
    records: Sequence[RunRecord],
    tag_of: Callable[[RunRecord, str], str],
    layout: Mapping[str, Mapping[str, Sequence[str]]],
) -> None:
    """Writes folder/<name of the run>/events... from each run's metrics.jsonl; what an earlier call wrote there is replaced.

    Args:
        tag_of: (run, metric) -> its tag; curves of one tag are laid over each other.
        layout: TensorBoard's CUSTOM SCALARS page: category -> chart -> tags, which TensorBoard takes for regular expressions.

    Raises:
        OSError: the folder cannot be written.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    for old in folder.glob(f"*/{PATTERN}"):
        old.unlink()
    for place, record in enumerate(records):
        began = (record.folder / "config.yaml").stat().st_mtime
        writer = EventFileWriter(str(folder / record.name.replace("/", "-")))
        try:
            if place == 0:
                writer.add_event(Event(wall_time=began, summary=_layout(layout)))
            for row in record.metrics:
                values = [
                    Summary.Value(tag=tag_of(record, name), simple_value=value)
                    for name, value in row.items()
                    if name not in ("step", "cycle")
                ]
                writer.add_event(
                    Event(wall_time=began + row["step"], step=int(row["step"]), summary=Summary(value=values))
                )
        finally:
            writer.close()


def _layout(layout: Mapping[str, Mapping[str, Sequence[str]]]) -> object:
    """As `torch.utils.tensorboard.SummaryWriter.add_custom_scalars` writes it, without torch."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.plugins.custom_scalar import layout_pb2

    def lines(tags: Sequence[str]) -> object:
        return layout_pb2.MultilineChartContent(tag=[f"^{re.escape(tag)}$" for tag in tags])

    categories = [
        layout_pb2.Category(
            title=title,
            chart=[layout_pb2.Chart(title=name, multiline=lines(tags)) for name, tags in charts.items()],
        )
        for title, charts in layout.items()
    ]
    tensor = TensorProto(
        dtype="DT_STRING",
        string_val=[layout_pb2.Layout(category=categories).SerializeToString()],
        tensor_shape=TensorShapeProto(),
    )
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="custom_scalars"))
    return Summary(value=[Summary.Value(tag="custom_scalars__config__", tensor=tensor, metadata=metadata)])
