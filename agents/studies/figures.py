"""Which charts a study has, and what is drawn in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.studies.answer import label, reference_of
from agents.studies.charts import (
    COLOURS,
    DASHES,
    GREY,
    SHOWN,
    Line,
    Panel,
    boundary,
    clouds,
    curves,
    forest,
    heatmap,
    scatter,
)

Row = Mapping[str, Any]
CHARTS = (
    "forest-*.png",
    "curves-*.png",
    "score.png",
    "reward.png",
    "intents.png",
    "theory.png",
    "boundary.png",
)
MOVED = 0.1  # gain or loss of accuracy in some arm, from which on an intent is drawn
ACROSS_MODELS = {
    "inverse": "accuracy of the inverse direction before training",
    "auc_within": "AUC of the reward within a task, before training",
}


def draw(study: Row, folder: Path) -> None:
    """All charts for which there is something to draw; those of an earlier report are removed first."""
    for pattern in CHARTS:
        for path in folder.glob(pattern):
            path.unlink()
    for place, names in enumerate(study["groups"].values(), 1):
        _draw_group(study, names, folder, place)
    main = next(iter(study["groups"].values()))
    _draw_scores({name: study["arms"][name] for name in main}, folder)
    _draw_intents({name: study["arms"][name] for name in main}, folder / "intents.png")
    _draw_theory(study["theory"], folder / "theory.png")
    _draw_boundary(study["theory"], folder / "boundary.png")


def _draw_group(study: Row, names: Sequence[str], folder: Path, place: int) -> None:
    """The gains of a group of arms, and their curves with those of the arms they are compared with."""
    arms = study["arms"]
    known = [name for name in names if arms[name]["gain"]["value"] is not None]
    if not known:
        return
    reference = reference_of(study)
    across, line = "gain in held-out accuracy, 95 % interval over seeds", None
    if reference and all(name == reference or arms[name]["reference"] == reference for name in known):
        line = arms[reference]["gain"]["value"]
        across += f"; dashed: {reference}"
    rows = [(label(name, arms[name]), arms[name]["gain"], _mark(arms[name])) for name in known]
    forest(folder / f"forest-{place}.png", rows, across, line)

    panels = []
    for name in known:
        arm = arms[name]
        if len(arm["curve"]) < 2:
            continue
        lines = []
        for role, dashes in (("reference", DASHES[1]), ("ceiling", DASHES[3])):
            other = arm[role]
            if other and arms[other]["curve"]:
                lines.append(Line(other, arms[other]["curve"], GREY, dashes))
        lines.append(Line(name, arm["curve"], COLOURS[0], band=True))
        panels.append(Panel(label(name, arm), lines))
    if panels:
        curves(folder / f"curves-{place}.png", panels, "held-out accuracy")


def _draw_scores(arms: Mapping[str, Row], folder: Path) -> None:
    """Each arm's own score next to its accuracy, and the change of one against the gain of the other."""
    panels, points = [], []
    for name, arm in arms.items():
        if len(arm["curve"]) < 2 or len(arm["score_curve"]) < 2:
            continue
        values = [point["mean"] for point in arm["score_curve"]]
        is_share = min(values) >= 0 and max(values) <= 1
        lines = [
            Line("accuracy", arm["curve"], COLOURS[0], band=True),
            Line("own score", arm["score_curve"], COLOURS[1], band=True, own_axis=not is_share),
        ]
        panels.append(Panel(label(name, arm), lines))
        change = arm["score_change"]["value"]
        # A score that is no share, as a certainty is not, has a unit of its own and no place among the
        # others.
        if is_share and change is not None:
            points.append((change, arm["gain"]["value"], label(name, arm), SHOWN.get(_mark(arm), GREY)))
    if panels:
        curves(folder / "reward.png", panels, "held-out accuracy, own score")
    if points:
        scatter(folder / "score.png", points, "change of its own score", "gain in held-out accuracy")


def _mark(arm: Row) -> str:
    """The verdict against the reference by which a point is coloured; empty where there is none."""
    against = arm["against_reference"]
    return "" if against["value"] is None else str(against["verdict"])


def _draw_intents(arms: Mapping[str, Row], path: Path) -> None:
    """Gain by intent and arm, the greatest mean gain on top. Intents that hardly move are left out."""
    shown = {label(name, arm): arm["intents"] for name, arm in arms.items() if arm["intents"]}
    gains: dict[str, list[float | None]] = {}
    for intents in shown.values():
        for intent in intents:
            gains[intent] = []
    if not gains:
        return
    for intent, row in gains.items():
        for intents in shown.values():
            row.append(intents[intent]["gain"] if intent in intents else None)

    def rank(intent: str) -> tuple[float, str]:
        known = [gain for gain in gains[intent] if gain is not None]
        return -sum(known) / len(known), intent

    def moves(intent: str) -> bool:
        return any(gain is not None and abs(gain) >= MOVED for gain in gains[intent])

    order = sorted(filter(moves, gains), key=rank)
    if not order:
        return
    note = f"left out: {len(gains) - len(order)} of {len(gains)} intents, within {MOVED} in every arm"
    heatmap(path, order, list(shown), [gains[intent] for intent in order], "gain in held-out accuracy", note)


def _draw_theory(theory: Mapping[str, Row], path: Path) -> None:
    """The intents of each model: AUC of the reward over accuracy of the inverse direction."""
    found = {}
    for name, row in theory.items():
        if row["intents"]:
            found[name] = [(intent["inverse"], intent["auc"]) for intent in row["intents"]]
    if found:
        across = "references of the intent from which the task is reconstructed"
        clouds(path, found, across, "AUC of the reward within a task")


def _draw_boundary(theory: Mapping[str, Row], path: Path) -> None:
    """The models: gain of the arm over what was measured before training."""
    against = all(row["against_reference"]["value"] is not None for row in theory.values())
    gain = "against_reference" if against else "gain"
    panels = []
    for key, across in ACROSS_MODELS.items():
        points = []
        for name, row in theory.items():
            if row[gain]["value"] is not None and row[key]["value"] is not None:
                points.append((name, row[key]["value"], row[gain]))
        if len(points) < 2:
            return
        panels.append((across, points))
    boundary(path, panels, "gain in held-out accuracy" + (", minus reference" if against else ""))
