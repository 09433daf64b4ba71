"""Charts as PNG files, the same bytes for the same numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

COLOURS = ("#0b63c4", "#c2500a", "#0c8160", "#9333b0", "#8a6d00", "#b42318", "#4b5563", "#0e7490")
DASHES = ("-", "--", "-.", ":")
GREY, GOOD, BAD = "#7a828b", "#0b7a3e", "#b42318"
FAINT = "#9aa4ae"
SHOWN = {"better": GOOD, "worse": BAD}
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so a chart looks the same everywhere
    "font.size": 9.0,
    "text.parse_math": False,  # a dollar sign in a name is no formula
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": "#3c444c",
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.grid": True,
    "grid.color": "#e6eaee",
    "grid.linewidth": 0.8,
    "xtick.color": "#5d6670",
    "ytick.color": "#5d6670",
    "legend.frameon": False,
    "figure.facecolor": "white",
}
LABEL_SIZE = 8.0  # points
GAP = 13.0  # pixels between two labels


@dataclass(frozen=True)
class Line:
    """A curve of a panel.

    Attributes:
        points: `step` (candidates scored) and `mean`; with a band also `low` and `high`.
        own_axis: drawn on an axis of its own, at the right, since its values are of another kind.
    """

    label: str
    points: Sequence[Mapping[str, float]]
    colour: str
    dashes: str = "-"
    band: bool = False
    own_axis: bool = False


@dataclass(frozen=True)
class Panel:
    """One small chart of a figure of curves."""

    title: str
    lines: Sequence[Line]


@contextmanager
def _figure(path: Path, width: float, height: float, rows: int = 1, columns: int = 1) -> Iterator[Any]:
    """Axes to draw on, written to the file at the end."""
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure.subplots(rows, columns, squeeze=False)
        figure.savefig(path, dpi=110, metadata={"Software": None})


# ---- curves ----


def curves(path: Path, panels: Sequence[Panel], up: str) -> None:
    """A panel for each arm, all on one scale; each curve is labelled at its end.

    Args:
        up: what the values are.
    """
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    low, high = _range(panels)
    pad = 0.05 * (high - low) + 0.02
    longest = max(len(line.label) for panel in panels for line in panel.lines)
    with _figure(path, 3.1 * columns + 0.5, 2.2 * rows + 0.6, rows, columns) as grid:
        filled = _filled(grid, panels)
        for place, (axes, panel) in enumerate(filled):
            axes.set_title(panel.title)
            axes.set_ylim(low - pad, high + pad)
            for line in panel.lines:
                _draw_line(axes, line)
            _thousands(axes)
            _leave_room(axes, panel.lines, longest)
            if place % columns == 0:
                axes.set_ylabel(up)
            else:
                axes.tick_params(labelleft=False)
        _across(grid, "candidates scored\nline: mean over seeds; band: lowest to highest seed")
        grid.flat[0].figure.draw_without_rendering()  # only now it is known where the curves end
        for axes, panel in filled:
            _label_ends(axes, panel.lines)


def overlay(path: Path, panels: Sequence[Panel], runs: int) -> None:
    """Curves of several runs laid over each other, a panel for each metric, with one legend for all.

    Args:
        runs: how many there are, for the height of the legend.
    """
    columns = min(2, max(1, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    last = 1.0
    for panel in panels:
        for line in panel.lines:
            last = max([last, *(point["step"] for point in line.points)])
    height = 2.5 * rows + 0.25 * math.ceil(runs / 3) + 0.3
    with _figure(path, 4.7 * columns, height, rows, columns) as grid:
        for axes, panel in _filled(grid, panels):
            axes.set_title(panel.title)
            for line in panel.lines:
                _draw_line(axes, line)
            axes.set_xlim(-0.03 * last, 1.03 * last)
            _thousands(axes)
        _across(grid, "candidates scored")
        _legend(grid, 3)


def look(place: int) -> tuple[str, str]:
    """Colour and dashes of the n-th run."""
    return COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]


def _filled(grid: Any, panels: Sequence[Panel]) -> list[tuple[Any, Panel]]:
    """The axes with their panels; axes that are left over are hidden."""
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    return list(zip(grid.flat, panels, strict=False))


def _range(panels: Sequence[Panel]) -> tuple[float, float]:
    """Lowest and highest value of all curves on the common axis."""
    heights = []
    for panel in panels:
        for line in panel.lines:
            if not line.own_axis:
                heights += [point.get("low", point["mean"]) for point in line.points]
                heights += [point.get("high", point["mean"]) for point in line.points]
    if not heights:
        return 0.0, 1.0
    return min(heights), max(heights)


def _draw_line(axes: Any, line: Line) -> None:
    if line.own_axis:
        axes = axes.twinx()
        axes.grid(visible=False)
        axes.tick_params(axis="y", colors=line.colour)
    steps = [point["step"] for point in line.points]
    means = [point["mean"] for point in line.points]
    if line.band:
        low = [point["low"] for point in line.points]
        high = [point["high"] for point in line.points]
        axes.fill_between(steps, low, high, color=line.colour, alpha=0.18, lw=0)
    marker = "o" if len(line.points) == 1 else ""
    width = 1.1 if line.colour == GREY else 1.7
    axes.plot(
        steps,
        means,
        color=line.colour,
        linestyle=line.dashes,
        linewidth=width,
        marker=marker,
        label=line.label,
    )


def _leave_room(axes: Any, lines: Sequence[Line], longest: int) -> None:
    """Room for a name of `longest` characters right of the last point; ticks only up to there."""
    last = max(line.points[-1]["step"] for line in lines)
    axes.set_xlim(-0.03 * last, last * (1.05 + 0.035 * longest))
    ticks = MaxNLocator(3).tick_values(0, last)
    axes.set_xticks([tick for tick in ticks if 0 <= tick <= last])


def _label_ends(axes: Any, lines: Sequence[Line]) -> None:
    """The name of each curve at its right end, moved up where two would lie on one another."""
    shared = [line for line in lines if not line.own_axis]
    taken = -math.inf
    for line in sorted(shared, key=lambda line: line.points[-1]["mean"]):
        end = (line.points[-1]["step"], line.points[-1]["mean"])
        _, height = axes.transData.transform(end)
        taken = max(height, taken + GAP)
        _annotate(axes, line.label, end, 5.0, taken - height, line.colour)
    for line in lines:
        if line.own_axis:
            text = f"{line.label} (right axis)"
            axes.text(
                0.97, 0.93, text, transform=axes.transAxes, ha="right", color=line.colour, fontsize=LABEL_SIZE
            )


def _thousands(axes: Any) -> None:
    def short(value: float, _: int) -> str:
        return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"

    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(short))


def _across(grid: Any, text: str) -> None:
    """What is across in all panels."""
    grid.flat[0].figure.supxlabel(text, fontsize=9, color="#3c444c")


def _legend(grid: Any, columns: int) -> None:
    """One legend above all panels."""
    handles = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles[label] = handle
    figure = grid.flat[0].figure
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper left", ncols=columns, fontsize=LABEL_SIZE
    )


# ---- values with intervals, and points ----


def forest(
    path: Path,
    rows: Sequence[tuple[str, Mapping[str, Any], str]],
    across: str,
    reference: float | None = None,
) -> None:
    """A value with its interval in each row, the highest on top.

    Args:
        rows: (label, estimate, verdict against the reference).
        reference: where to draw a dashed line.
    """
    known = [row for row in rows if row[1]["value"] is not None]
    ranked = sorted(known, key=lambda row: row[1]["value"])
    with _figure(path, 7.2, 0.9 + 0.27 * max(1, len(ranked))) as grid:
        axes = grid[0][0]
        axes.axvline(0, color=FAINT, linewidth=1)
        if reference is not None:
            axes.axvline(reference, color=GREY, linewidth=1, linestyle="--")
        for place, (_, estimate, verdict) in enumerate(ranked):
            colour = SHOWN.get(verdict, GREY)
            if estimate["low"] is not None:
                _whisker(axes, [estimate["low"], estimate["high"]], [place, place], colour)
            filled = colour if verdict else "white"
            axes.plot(estimate["value"], place, "o", color=colour, markerfacecolor=filled, markersize=5)
        axes.set_yticks(range(len(ranked)), [label for label, _, _ in ranked])
        axes.set_ylim(-0.6, len(ranked) - 0.4)
        axes.tick_params(axis="y", length=0, labelcolor="#1c2024")
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(across)


def scatter(path: Path, points: Sequence[tuple[float, float, str, str]], across: str, up: str) -> None:
    """Named points (x, y, label, colour), and a dotted line on which both are equal."""
    with _figure(path, 7.2, 4.8) as grid:
        axes = grid[0][0]
        axes.axhline(0, color="#c3cad1", linewidth=1)
        axes.axvline(0, color="#c3cad1", linewidth=1)
        for x, y, _, colour in points:
            axes.plot(x, y, "o", color=colour, markersize=5.5, alpha=0.8, markeredgewidth=0)
        axes.axline((0, 0), slope=1, color=GREY, linewidth=1, linestyle=":")
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        _label_points(axes, [(x, y, label) for x, y, label, _ in points])


def clouds(path: Path, clouds: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str) -> None:
    """Points (x, y) by what they belong to, a colour for each. Points that lie on one another are darker."""
    with _figure(path, 7.2, 4.6) as grid:
        axes = grid[0][0]
        for place, (name, points) in enumerate(clouds.items()):
            colour, _ = look(place)
            x, y = [point[0] for point in points], [point[1] for point in points]
            axes.plot(x, y, "o", color=colour, alpha=0.55, markeredgewidth=0, label=name)
        axes.axhline(0.5, color=GREY, linewidth=1, linestyle=":")
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        _legend(grid, 4)


def boundary(
    path: Path, panels: Sequence[tuple[str, Sequence[tuple[str, float, Mapping[str, Any]]]]], up: str
) -> None:
    """Named values with intervals over x; a panel is (what is across, points of (label, x, estimate))."""
    with _figure(path, 5.4 * len(panels), 4.0, 1, len(panels)) as grid:
        for axes, (across, points) in zip(grid[0], panels, strict=True):
            axes.axhline(0, color=FAINT, linewidth=1)
            for _, x, estimate in points:
                colour = SHOWN.get(estimate["verdict"], GREY)
                if estimate["low"] is not None:
                    _whisker(axes, [x, x], [estimate["low"], estimate["high"]], colour)
                axes.plot(x, estimate["value"], "o", color=colour, markersize=5.5)
            axes.set_xlabel(across)
            axes.set_ylabel(up)
            _label_points(axes, [(x, estimate["value"], label) for label, x, estimate in points])


def _whisker(axes: Any, x: Sequence[float], y: Sequence[float], colour: str) -> None:
    axes.plot(x, y, color=colour, linewidth=2, alpha=0.6, solid_capstyle="butt")


def _label_points(axes: Any, points: Sequence[tuple[float, float, str]]) -> None:
    """Names next to the points, moved up where they would lie on one another."""
    axes.margins(x=0.2, y=0.08)
    axes.figure.draw_without_rendering()
    taken: list[tuple[float, float, float]] = []  # left end, right end, height
    for x, y, label in sorted(points, key=lambda point: (point[1], point[0])):
        left, height = axes.transData.transform((x, y))
        left += 7
        right = left + 7.2 * len(label)
        at = height
        while _overlaps(left, right, at, taken):
            at += 2
        taken.append((left, right, at))
        _annotate(axes, label, (x, y), 7.0, at - height, "#1c2024")


def _overlaps(left: float, right: float, height: float, taken: Sequence[tuple[float, float, float]]) -> bool:
    for other_left, other_right, other_height in taken:
        if abs(height - other_height) < GAP and left < other_right and right > other_left:
            return True
    return False


def _annotate(
    axes: Any, label: str, point: tuple[float, float], right: float, up: float, colour: str
) -> None:
    """Text next to a point, some pixels to the right and up; a thin line leads back from far away."""
    thin = {"arrowstyle": "-", "color": "#b5bcc4", "linewidth": 0.6} if up > 6 else None
    scale = 72 / axes.figure.dpi
    axes.annotate(
        label,
        point,
        (right * scale, up * scale),
        textcoords="offset points",
        va="center",
        fontsize=LABEL_SIZE,
        color=colour,
        arrowprops=thin,
        annotation_clip=False,
    )


# ---- a table in colours ----


def heatmap(
    path: Path,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    label: str,
    note: str,
) -> None:
    """A colour in each cell, blue up and red down; cells that were not measured stay white.

    Args:
        label: what the values are.
        note: a line below.
    """
    data = np.array(values, dtype=float)  # None becomes NaN
    limit = float(np.nanmax(np.abs(data))) or 1.0
    with _figure(path, 3.4 + 0.42 * len(columns), 1.9 + 0.185 * max(4, len(rows))) as grid:
        axes = grid[0][0]
        image = axes.imshow(
            data, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
        )
        axes.set_yticks(range(len(rows)), rows, fontsize=7.5)
        axes.set_xticks(
            range(len(columns)), columns, rotation=55, ha="left", rotation_mode="anchor", fontsize=8
        )
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.set_xlabel(note, fontsize=LABEL_SIZE)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = axes.figure.colorbar(image, ax=axes, shrink=min(1.0, 14 / len(rows)), aspect=18, pad=0.02)
        bar.set_label(label)
        bar.outline.set_visible(False)
