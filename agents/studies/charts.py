"""Charts as PNG files, the same bytes for the same numbers. matplotlib is imported only when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COLOURS = ("#0b63c4", "#c2500a", "#0c8160", "#9333b0", "#8a6d00", "#b42318", "#4b5563", "#0e7490")
DASHES = ("-", "--", "-.", ":")
GREY, GOOD, BAD = "#7a828b", "#0b7a3e", "#b42318"
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that a chart looks the same everywhere
    "font.size": 9.0,
    "text.parse_math": False,  # a dollar sign in a name is no formula
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa4ae",
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
SHOWN = {"better": GOOD, "worse": BAD}


@contextmanager
def _figure(path: Path, width: float, height: float, rows: int = 1, columns: int = 1) -> Iterator[Any]:
    """Axes to draw on, written to the file at the end."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure.subplots(rows, columns, squeeze=False)
        figure.savefig(path, dpi=110, metadata={"Software": None})


def _thousands(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
    )


def curves(
    path: Path,
    panels: Sequence[tuple[str, Mapping[str, Any]]],
    context: Mapping[str, Mapping[str, Any]] | None = None,
    scores: bool = False,
) -> None:
    """A small panel an arm: held-out truth over candidates, with a band from the lowest seed to the highest.

    Args:
        panels: (title, arm) with `curve` and `score_curve`.
        context: title -> curves of other arms, by name, to draw in grey behind it.
        scores: draw the arm's own score beside the truth.
    """
    columns = min(4, max(1, len(panels)))
    rows = math.ceil(len(panels) / columns)
    look = dict(
        zip(
            dict.fromkeys(name for others in (context or {}).values() for name in others),
            DASHES[1:] * 9,
            strict=False,
        )
    )
    own = {
        title: scores and any(not 0 <= point["mean"] <= 1 for point in arm["score_curve"])
        for title, arm in panels
    }
    kinds = {
        title: ("curve", "score_curve") if scores and not own[title] else ("curve",) for title, _ in panels
    }
    heights = [
        point[end]
        for title, arm in panels
        for kind in kinds[title]
        for point in arm[kind]
        for end in ("low", "high")
    ]
    low, high = (min(heights), max(heights)) if heights else (0.0, 1.0)
    pad = 0.05 * (high - low) + 0.02
    with _figure(path, 2.6 * columns + 0.6, 1.95 * rows + 0.8, rows, columns) as grid:
        for place, axes in enumerate(grid.flat):
            if place >= len(panels):
                axes.set_visible(False)
                continue
            title, arm = panels[place]
            axes.set_title(title)
            for name, curve in (context or {}).get(title, {}).items():
                axes.plot(*_line(curve), color=GREY, linestyle=look[name], linewidth=1.1, label=name)
            _band(axes, arm["curve"], COLOURS[0], "held-out greedy truth")
            if scores:
                other = (
                    axes.twinx() if own[title] else axes
                )  # a score that is no share has an axis of its own
                _band(other, arm["score_curve"], COLOURS[1], "" if own[title] else "own score")
                if own[title]:
                    other.grid(visible=False)
                    other.tick_params(axis="y", colors=COLOURS[1])
            axes.set_ylim(low - pad, high + pad)
            _thousands(axes)
            if place % columns:
                axes.tick_params(labelleft=False)
        figure = grid.flat[0].figure
        figure.supxlabel("candidates scored", fontsize=9, color="#3c444c")
        _legend(figure, grid, 4 if columns > 2 else 2)


def _band(axes: Any, curve: Sequence[Mapping[str, float]], colour: str, label: str) -> None:
    steps, means = _line(curve)
    axes.fill_between(
        steps,
        [point["low"] for point in curve],
        [point["high"] for point in curve],
        color=colour,
        alpha=0.18,
        lw=0,
    )
    axes.plot(steps, means, color=colour, linewidth=1.8, label=label)


def _legend(figure: Any, grid: Any, columns: int) -> None:
    """One legend above all panels."""
    handles = {
        label: handle
        for axes in grid.flat
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=columns, fontsize=8)


def _line(curve: Sequence[Mapping[str, float]]) -> tuple[list[float], list[float]]:
    return [point["step"] for point in curve], [point["mean"] for point in curve]


def forest(
    path: Path,
    rows: Sequence[tuple[str, Mapping[str, Any], str]],
    across: str,
    reference: float | None = None,
) -> None:
    """A value with its interval a row, the highest on top; (label, estimate, verdict against the reference)."""
    ranked = sorted((row for row in rows if row[1]["value"] is not None), key=lambda row: row[1]["value"])
    with _figure(path, 7.2, 0.9 + 0.27 * max(1, len(ranked))) as grid:
        axes = grid[0][0]
        axes.axvline(0, color="#9aa4ae", linewidth=1)
        if reference is not None:
            axes.axvline(reference, color=GREY, linewidth=1, linestyle="--")
        for place, (_, estimate, verdict) in enumerate(ranked):
            colour = SHOWN.get(verdict, GREY)
            if estimate["low"] is not None:
                axes.plot(
                    [estimate["low"], estimate["high"]],
                    [place, place],
                    color=colour,
                    linewidth=2,
                    alpha=0.6,
                    solid_capstyle="butt",
                )
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
        _labels(axes, [(x, y, label) for x, y, label, _ in points])


def clouds(path: Path, points: Sequence[tuple[float, float, str]], across: str, up: str) -> None:
    """Points (x, y, what they belong to), a colour for each of the last. Points that lie on one another are darker."""
    with _figure(path, 7.2, 4.6) as grid:
        axes = grid[0][0]
        for place, name in enumerate(dict.fromkeys(name for _, _, name in points)):
            part = [(x, y) for x, y, owner in points if owner == name]
            axes.plot(
                [x for x, _ in part],
                [y for _, y in part],
                "o",
                color=COLOURS[place % len(COLOURS)],
                alpha=0.55,
                markeredgewidth=0,
                label=name,
            )
        axes.axhline(0.5, color=GREY, linewidth=1, linestyle=":")
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        _legend(axes.figure, grid, 4)


def boundary(
    path: Path, panels: Sequence[tuple[str, Sequence[tuple[str, float, Mapping[str, Any]]]]], up: str
) -> None:
    """A panel for each (what is across, points); a point is (label, x, estimate), a value with its interval over x."""
    with _figure(path, 5.4 * len(panels), 4.0, 1, len(panels)) as grid:
        for axes, (across, points) in zip(grid[0], panels, strict=True):
            axes.axhline(0, color="#9aa4ae", linewidth=1)
            for _, x, estimate in points:
                colour = SHOWN.get(estimate["verdict"], GREY)
                if estimate["low"] is not None:
                    axes.plot(
                        [x, x],
                        [estimate["low"], estimate["high"]],
                        color=colour,
                        linewidth=2,
                        alpha=0.6,
                        solid_capstyle="butt",
                    )
                axes.plot(x, estimate["value"], "o", color=colour, markersize=5.5)
            axes.set_xlabel(across)
            axes.set_ylabel(up)
            _labels(axes, [(x, estimate["value"], label) for label, x, estimate in points])


def _labels(axes: Any, points: Sequence[tuple[float, float, str]]) -> None:
    """Names beside the points, moved up where they would lie on one another."""
    axes.margins(x=0.2, y=0.08)
    axes.figure.draw_without_rendering()
    taken: list[tuple[float, float, float]] = []
    for x, y, label in sorted(points, key=lambda point: (point[1], point[0])):
        left, middle = axes.transData.transform((x, y))
        left, width = left + 7, 7.2 * len(label)
        at = middle
        while any(
            abs(at - other) < 13 and left < right and left + width > start for start, right, other in taken
        ):
            at += 2
        taken.append((left, left + width, at))
        thin = {"arrowstyle": "-", "color": "#b5bcc4", "linewidth": 0.6} if at - middle > 6 else None
        scale = 72 / axes.figure.dpi
        axes.annotate(
            label,
            (x, y),
            (7 * scale, (at - middle) * scale),
            textcoords="offset points",
            va="center",
            fontsize=8,
            arrowprops=thin,
        )


def heatmap(
    path: Path,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    label: str,
) -> None:
    """A colour a cell, blue up and red down; cells that were not measured stay white."""
    data = [[math.nan if value is None else value for value in row] for row in values]
    limit = max((abs(value) for row in data for value in row if not math.isnan(value)), default=1.0) or 1.0
    with _figure(path, 3.4 + 0.42 * len(columns), 1.6 + 0.185 * len(rows)) as grid:
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
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = axes.figure.colorbar(image, ax=axes, shrink=0.4, aspect=18, pad=0.02)
        bar.set_label(label)
        bar.outline.set_visible(False)


def overlay(
    path: Path,
    panels: Sequence[tuple[str, Mapping[str, Sequence[tuple[float, float]]]]],
    order: Sequence[str],
) -> None:
    """Curves of several runs laid over each other, a panel a metric; (title, run -> points). A run looks the same in every panel."""
    columns = min(2, max(1, len(panels)))
    rows = math.ceil(len(panels) / columns)
    last = max(
        (point[0] for _, lines in panels for points in lines.values() for point in points), default=1.0
    )
    look = {
        name: (COLOURS[at % len(COLOURS)], DASHES[at // len(COLOURS) % len(DASHES)])
        for at, name in enumerate(order)
    }
    with _figure(
        path, 4.7 * columns, 2.5 * rows + 0.25 * math.ceil(len(order) / 3) + 0.3, rows, columns
    ) as grid:
        for place, axes in enumerate(grid.flat):
            if place >= len(panels):
                axes.set_visible(False)
                continue
            title, lines = panels[place]
            axes.set_title(title)
            for name, points in lines.items():
                colour, dashes = look[name]
                x, y = [point[0] for point in points], [point[1] for point in points]
                axes.plot(
                    x,
                    y,
                    color=colour,
                    linestyle=dashes,
                    linewidth=1.6,
                    marker="o" if len(points) == 1 else "",
                    label=name,
                )
            axes.set_xlim(-0.03 * last, 1.03 * last)
            _thousands(axes)
        figure = grid.flat[0].figure
        figure.supxlabel("candidates scored", fontsize=9, color="#3c444c")
        _legend(figure, grid, 3)
