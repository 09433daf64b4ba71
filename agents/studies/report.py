"""What a study found, as files in its folder: study.json, STUDY.md, index.html and the charts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.evaluation.html import interval, number, signed
from agents.studies import charts
from agents.studies.html import write_page

CHARTS = (
    "forest-*.png",
    "curves-*.png",
    "score.png",
    "reward.png",
    "intents.png",
    "theory.png",
    "boundary.png",
)
NOTES = (
    "Intervals are 95 %, Student's t over training seeds: they say what another seed would give on the same held-out tasks, and do not "
    "cover the choice of the tasks. One seed, or seeds that are all equal, give none.",
    "Gain less that of the reference: the difference to the reference arm with the same seed. An arm on other tasks, from another model "
    'or with another budget of candidates is not compared. "Better" and "worse" are said only where the interval leaves 0 out; of '
    "{comparisons} comparisons without any effect one in twenty would.",
    "Share of the gap closed: (gain - reference) / (ceiling - reference), with Fieller's interval for a ratio of paired means; no interval "
    "where the ceiling itself is not shown to be above the reference.",
    "An arm that is labelled learns from the truth: no competitor, and no limit to what can be learnt.",
    "Reward AUC: how often the reward puts a right sample above a wrong one, 0.5 being chance; over all tasks, and among the samples of "
    "one task; the first 100 held-out tasks, by their samples.",
    "pass@1, AUC and the score are of samples at the arm's own temperature, so that they cannot be compared between temperatures; greedy "
    "truth can.",
    "Bands in the curves reach from the lowest seed to the highest; the curves are of the smaller subset that is evaluated after every "
    "cycle.",
    "To +0.10: candidates to learn from after which this curve, its mean over the seeds, was first 0.10 above its start.",
    "Seconds are those of the cycles, of one core where a study has one for each run; learning is writing, scoring and training. "
    "Rejection-sampling SFT writes and scores as many candidates again after each training phase, only to measure.",
)
TOO_FEW = "Too few seeds to say against"
ENOUGH = 4  # seeds for which "no difference shown" means more than that there are few
MAIN = (
    "arm",
    "seeds",
    "truth, start → end",
    "gain",
    "pass@1 gain",
    "less the reference",
    "gap closed",
    "AUC",
    "AUC within a task",
    "own score",
)
HEALTH = (
    "arm",
    "distinct, first → last",
    "entropy",
    "length",
    "alarms",
    "candidates",
    "to +0.10",
    "seconds, of them learning",
)
THEORY = (
    "arm",
    "reward",
    "inverse accuracy",
    "AUC",
    "AUC within a task",
    "gain",
    "less the reference",
    "rank correlation of inverse and AUC over intents",
)


def write_study(study: Mapping[str, Any], folder: Path) -> None:
    """Writes everything; the same numbers give the same bytes.

    Raises:
        OSError: a file cannot be written.
    """
    (folder / "study.json").write_text(
        json.dumps(study, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    for pattern in CHARTS:  # of an earlier report with more to draw
        for path in folder.glob(pattern):
            path.unlink()
    draw(study, folder)
    (folder / "STUDY.md").write_text(markdown(study, folder), encoding="utf-8")
    write_page(
        "study.html.jinja",
        folder / "index.html",
        {"share": share, "share_interval": share_interval, "took": took, "capitalize_first": _first_up},
        study=study,
        answer=answer(study),
        notes=notes(study),
        transfer=_domains(study),
        reference=reference_of(study),
    )


def notes(study: Mapping[str, Any]) -> list[str]:
    """How to read the tables."""
    return [note.format(comparisons=study["comparisons"]) for note in NOTES]


def reference_of(study: Mapping[str, Any]) -> str | None:
    """The arm with which most are compared."""
    names = [arm["reference"] for arm in study["arms"].values() if arm["reference"]]
    return max(dict.fromkeys(names), key=names.count) if names else None


def answer(study: Mapping[str, Any]) -> list[str]:
    """What the study says, in a few sentences: the best arm without labels, and who is better, worse or neither than the reference."""
    arms = study["arms"]
    reference = reference_of(study)
    compared = {
        name: arm
        for name, arm in arms.items()
        if arm["against_reference"]["value"] is not None and arm["reference"] == reference
    }
    ranked = sorted(
        (name for name in compared if not arms[name]["labelled"]),
        key=lambda name: -compared[name]["gain"]["value"],
    )
    if not ranked:
        gained = {
            name: arm
            for name, arm in arms.items()
            if arm["gain"]["value"] is not None and not arm["labelled"]
        }
        if not gained:
            return ["No run has finished yet, so nothing can be said."]
        best = max(gained, key=lambda name: gained[name]["gain"]["value"])
        return [
            f"The greatest gain without labels is that of {best}: {_told(arms[best]['gain'])}. No arm has a reference to compare with."
        ]
    best = ranked[0]
    row = arms[best]
    lines = [
        f"Greatest gain without labels: {best}, {_told(row['gain'])}; with the same seeds {_told(row['against_reference'])} against "
        f"{reference}: {_verdict_of(row['against_reference'])}."
    ]
    if row["gap_closed"]["value"] is not None:
        of = f" {share_interval(row['gap_closed'])}" if row["gap_closed"]["low"] is not None else ""
        lines.append(
            f"That is {share(row['gap_closed'])}{of} of the gap from {reference} to {row['ceiling']}, which learns from labels."
        )
    verdicts: dict[str, list[str]] = {
        "Better than": [],
        "Worse than": [],
        "No difference shown to": [],
        TOO_FEW: [],
    }
    for name in ranked:
        row = arms[name]["against_reference"]
        known = {"better": "Better than", "worse": "Worse than"}
        verdicts[
            known.get(row["verdict"], TOO_FEW if row["seeds"] < ENOUGH else "No difference shown to")
        ].append(name)
    lines += [f"{text} {reference}: {', '.join(names)}." for text, names in verdicts.items() if names]
    failing = [name for name, arm in arms.items() if arm["gain"].get("verdict") == "worse"]
    if failing:
        lines.append(f"Made the model worse than it was: {', '.join(failing)}.")
    return lines


def _verdict_of(row: Mapping[str, Any]) -> str:
    return "no interval" if row["verdict"] == "not measured" else str(row["verdict"])


def _told(row: Mapping[str, Any]) -> str:
    return f"{signed(row['value'])} {interval(row, True)}".strip()


def share(row: Mapping[str, Any]) -> str:
    """A share in percent."""
    return "–" if row["value"] is None else f"{row['value']:.0%}"


def share_interval(row: Mapping[str, Any]) -> str:
    """The ends of its interval."""
    return "" if row["low"] is None else f"[{row['low']:.0%}, {row['high']:.0%}]"


def took(study: Mapping[str, Any]) -> str:
    """The time of a study, as far as it is known."""
    wall = (
        f", {minutes(study['wall_seconds'])} in all, {study['at_once']} at a time"
        if study["wall_seconds"]
        else ""
    )
    return f"{minutes(study['seconds'])} of one core in their cycles{wall}"


def minutes(seconds: float) -> str:
    """A time for reading."""
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"


def _first_up(text: str) -> str:
    return text[:1].upper() + text[1:]


def _domains(study: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(domain for arm in study["arms"].values() for domain in arm["transfer"]))


def label(name: str, arm: Mapping[str, Any]) -> str:
    """An arm's name, with a mark where it learns from labels."""
    return f"{name} (labelled)" if arm["labelled"] else name


# ---- Markdown ----


def markdown(study: Mapping[str, Any], folder: Path) -> str:
    """The tables as Markdown, with the charts that are in the folder."""
    arms = study["arms"]

    def picture(name: str, text: str) -> list[str]:
        return [f"![{text}]({name})", ""] if (folder / name).is_file() else []

    lines = [
        f"# Study {study['study']}",
        "",
        f"    {study['command']}",
        "",
        *([study["about"], ""] if study["about"] else []),
    ]
    lines += [
        f"{len(arms)} arms, {study['finished']} of {study['runs']} runs finished, {took(study)}.",
        "",
        *answer(study),
        "",
    ]
    if study["failed"]:
        lines += ["Failed runs, which count nowhere:", ""]
        lines += [f"- {_failure(row)}: {_cell(row['why'])}" for row in study["failed"]]
        lines += [""]
    for place, (group, names) in enumerate(study["groups"].items(), 1):
        lines += [
            f"## {_first_up(group)}",
            "",
            *picture(f"forest-{place}.png", "gain of each arm, with intervals"),
            *_head(MAIN),
        ]
        lines += [_row(_main_cells(name, arms[name])) for name in names]
        lines += ["", *_head(HEALTH), *(_row(_health_cells(name, arms[name])) for name in names), ""]
        lines += picture(f"curves-{place}.png", "held-out truth over candidates scored")
    if own := [
        *picture("score.png", "change of its own score against gain"),
        *picture("reward.png", "own score and truth"),
    ]:
        lines += ["## Own score against truth", "", *own]
    if by_intent := picture("intents.png", "gain by intent"):
        lines += ["## Gain by intent", "", *by_intent]
    if domains := _domains(study):
        lines += ["## Transfer between domains", "", *_head(("arm", "trained on", *domains))]
        for name, arm in arms.items():
            if arm["transfer"]:
                cells = [
                    _estimate(arm["transfer"][domain]) if domain in arm["transfer"] else "–"
                    for domain in domains
                ]
                lines += [_row([label(name, arm), arm["domain"], *cells])]
        lines += [""]
    if study["theory"]:
        lines += [
            "## Why it works, and when it stops",
            "",
            *picture("theory.png", "AUC by intent over accuracy of the inverse"),
        ]
        lines += _head(THEORY)
        for name, row in study["theory"].items():
            cells = [number(row[key]["value"]) for key in ("inverse", "auc", "auc_within")]
            lines += [
                _row(
                    [
                        name,
                        row["reward"],
                        *cells,
                        _estimate(row["gain"]),
                        _estimate(row["against_reference"]),
                        _told(row["correlation"]),
                    ]
                )
            ]
        lines += [
            "",
            *picture(
                "boundary.png", "gain over accuracy of the inverse direction and over the AUC of the reward"
            ),
        ]
    return "\n".join([*lines, "## How to read it", "", *(f"- {note}" for note in notes(study)), ""])


def _failure(row: Mapping[str, Any]) -> str:
    """What failed: a run, by its arm and seed, or an evaluation."""
    return str(row["arm"]) if row["seed"] is None else f"{row['arm']}, seed {row['seed']}"


def _main_cells(name: str, arm: Mapping[str, Any]) -> list[str]:
    against = arm["against_reference"]
    verdict = f", {against['verdict']}" if against["value"] is not None else ""
    return [
        label(name, arm),
        f"{len(arm['runs'])}/{len(arm['wanted'])}",
        f"{number(arm['start'])} → {number(arm['end'])}",
        f"**{signed(arm['gain']['value'])}** {interval(arm['gain'], True)}",
        _estimate(arm["pass@1_gain"]),
        _estimate(against) + verdict,
        f"{share(arm['gap_closed'])} {share_interval(arm['gap_closed'])}",
        _two(arm["auc"]),
        _two(arm["auc_within"]),
        _estimate(arm["score_change"]),
    ]


def _health_cells(name: str, arm: Mapping[str, Any]) -> list[str]:
    alarms = ", ".join(f"{alarm.replace('_', ' ')} ({count})" for alarm, count in arm["alarms"].items())
    cells = [label(name, arm), *(_two(arm[key]) for key in ("distinct", "entropy", "length")), alarms or "–"]
    counts = [
        "–" if arm[key] is None else f"{arm[key]:,.0f}"
        for key in ("candidates", "candidates_to_rise", "seconds", "learning")
    ]
    return [*cells, *counts[:2], f"{counts[2]}, {counts[3]}"]


def _estimate(row: Mapping[str, Any]) -> str:
    return _told(row) if row["value"] is not None else "–"


def _two(pair: Iterable[float | None]) -> str:
    return " → ".join(map(number, pair))


def _head(cells: Sequence[str]) -> list[str]:
    return [_row(cells), "|" + "---|" * len(cells)]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(_cell(cell).strip() for cell in cells) + " |"


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


# ---- charts ----


def draw(study: Mapping[str, Any], folder: Path) -> None:
    """All charts for which there is something to draw."""
    arms = study["arms"]
    for place, names in enumerate(study["groups"].values(), 1):
        known = [name for name in names if arms[name]["gain"]["value"] is not None]
        if not known:
            continue
        reference = reference_of(study)
        same = all(name == reference or arms[name]["reference"] == reference for name in known)
        middle = arms[reference]["gain"]["value"] if reference and same else None
        charts.forest(
            folder / f"forest-{place}.png",
            [(label(name, arms[name]), arms[name]["gain"], _mark(arms[name])) for name in known],
            "gain in held-out greedy truth, 95 % interval over seeds"
            + (f"; dashed: {reference}" if middle is not None else ""),
            middle,
        )
        titles = {label(name, arms[name]): name for name in known if len(arms[name]["curve"]) > 1}
        context = {
            title: {
                other: arms[other]["curve"]
                for role in ("reference", "ceiling")
                if (other := arms[name][role]) and arms[other]["curve"]
            }
            for title, name in titles.items()
        }
        if titles:
            charts.curves(
                folder / f"curves-{place}.png",
                [(title, arms[name]) for title, name in titles.items()],
                context,
            )
    first = next(iter(study["groups"].values()))
    scored = [name for name in first if len(arms[name]["curve"]) > 1 and len(arms[name]["score_curve"]) > 1]
    if scored:
        charts.curves(
            folder / "reward.png", [(label(name, arms[name]), arms[name]) for name in scored], scores=True
        )
    # Scores that are no shares, as certainties are not, are in units of their own and cannot lie on one axis with the others.
    shown = {
        name: arms[name]
        for name in scored
        if all(0 <= point["mean"] <= 1 for point in arms[name]["score_curve"])
        and arms[name]["score_change"]["value"] is not None
    }
    if shown:
        charts.scatter(
            folder / "score.png",
            [
                (
                    arm["score_change"]["value"],
                    arm["gain"]["value"],
                    label(name, arm),
                    charts.SHOWN.get(_mark(arm), charts.GREY),
                )
                for name, arm in shown.items()
            ],
            "change of its own score",
            "gain in held-out greedy truth",
        )
    _draw_intents(study, first, folder / "intents.png")
    _draw_theory(study, folder)


def _mark(arm: Mapping[str, Any]) -> str:
    """The verdict against the reference by which a point is coloured; empty where there is none."""
    return str(arm["against_reference"]["verdict"]) if arm["against_reference"]["value"] is not None else ""


def _draw_intents(study: Mapping[str, Any], names: Iterable[str], path: Path) -> None:
    arms = {name: study["arms"][name] for name in names if study["arms"][name]["intents"]}
    intents = sorted({intent for arm in arms.values() for intent in arm["intents"]})
    if not intents:
        return
    gains = {
        intent: [arm["intents"].get(intent, {}).get("gain") for arm in arms.values()] for intent in intents
    }

    def average(intent: str) -> float:
        known = [gain for gain in gains[intent] if gain is not None]
        return sum(known) / len(known)

    intents.sort(key=lambda intent: (-average(intent), intent))
    columns = [label(name, arm) for name, arm in arms.items()]
    charts.heatmap(path, intents, columns, [gains[intent] for intent in intents], "gain in greedy truth")


def _draw_theory(study: Mapping[str, Any], folder: Path) -> None:
    points = [
        (row["inverse"], row["auc"], name)
        for name, theory in study["theory"].items()
        for row in theory["intents"]
    ]
    if points:
        charts.clouds(
            folder / "theory.png",
            points,
            "references of the intent read back rightly",
            "AUC of the reward within a task",
        )
    against = all(row["against_reference"]["value"] is not None for row in study["theory"].values())
    models = [
        (name, row, row["against_reference" if against else "gain"]) for name, row in study["theory"].items()
    ]
    models = [(name, row, gain) for name, row, gain in models if gain["value"] is not None]
    across = {
        "inverse": "accuracy of the inverse direction before training",
        "auc_within": "AUC of the reward within a task, before training",
    }
    panels = [
        (
            text,
            [(name, row[key]["value"], gain) for name, row, gain in models if row[key]["value"] is not None],
        )
        for key, text in across.items()
    ]
    if all(len(points) > 1 for _, points in panels):
        up = "gain in held-out greedy truth" + (", less that of the reference" if against else "")
        charts.boundary(folder / "boundary.png", panels, up)
