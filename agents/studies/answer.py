"""What a study says, in sentences, and how its numbers are written in tables and on pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agents.cli.display import interval, signed

ENOUGH = 4  # seeds for which "no difference shown" means more than that there are few
Row = Mapping[str, Any]

NOTES = (
    "Intervals are 95 %, Student's t over training seeds: they say what another seed would give on the "
    "same held-out tasks. They do not cover the choice of the tasks. One seed, or seeds that are all "
    "equal, give none.",
    "Held-out accuracy: share of held-out tasks whose greedy command does what was asked.",
    "Gain minus reference: the difference to the reference arm with the same seed. An arm on other tasks, "
    "from another model or with another budget of candidates is not compared. An arm is called better or "
    "worse only where the interval excludes 0; of {comparisons} comparisons without any effect, one in "
    "twenty would be.",
    "Share of the gap closed: (gain - reference) / (ceiling - reference), with Fieller's interval for a "
    "ratio of paired means. There is no interval where the ceiling itself is not shown to be above the "
    "reference.",
    "A labelled arm learns from references, or from verdicts on its commands. It is no competitor, and no "
    "limit to what can be learnt.",
    "Reward AUC: how often the reward scores a right sample above a wrong one, 0.5 being chance; over all "
    "tasks, and among the samples of one task. It is measured on samples of the first 100 held-out tasks.",
    "pass@1, AUC and the score are of samples at the arm's own temperature, so they cannot be compared "
    "between temperatures. Held-out accuracy (greedy) can.",
    "Bands in the curves reach from the lowest seed to the highest. The curves are of the smaller subset "
    "that is evaluated after every cycle.",
    "To +0.10: candidates scored until this curve, its mean over the seeds, was first 0.10 above its start.",
    "Seconds are those of the cycles, on one core where each run has a core. Learning is generating, "
    "scoring and training. Rejection-sampling SFT generates and scores candidates again after each "
    "training phase, only to measure: as many, if after_tasks does not say otherwise.",
)


# ---- sentences ----


def notes(study: Row) -> list[str]:
    """How to read the tables."""
    return [note.format(comparisons=study["comparisons"]) for note in NOTES]


def reference_of(study: Row) -> str | None:
    """The arm with which most are compared."""
    names = [arm["reference"] for arm in study["arms"].values() if arm["reference"]]
    if not names:
        return None
    return max(dict.fromkeys(names), key=names.count)


def answer(study: Row) -> list[str]:
    """The best arm without labels, and which arms are better or worse than the reference."""
    arms = study["arms"]
    reference = reference_of(study)
    ranked = _best_first(arms, reference)
    if not ranked or reference is None:
        return [_without_reference(arms)]
    best = ranked[0]
    row = arms[best]
    against = row["against_reference"]
    verdict = "no interval" if against["verdict"] == "not measured" else against["verdict"]
    lines = [
        f"Greatest gain without labels: {best}, {told(row['gain'])}; "
        f"with the same seeds {told(against)} against {reference}: {verdict}."
    ]
    gap = row["gap_closed"]
    if gap["value"] is not None:
        closed = f"{share(gap)} {share_interval(gap)}".strip()
        lines.append(
            f"That is {closed} of the gap from {reference} to {row['ceiling']}, which learns from labels."
        )
    lines += _verdicts(arms, ranked, reference)
    failing = [name for name, arm in arms.items() if arm["gain"].get("verdict") == "worse"]
    if failing:
        lines.append(f"Made the model worse than it was: {', '.join(failing)}.")
    return lines


def _best_first(arms: Mapping[str, Row], reference: str | None) -> list[str]:
    """The arms without labels that are compared with the reference, by their gain."""
    compared = []
    for name, arm in arms.items():
        has_value = arm["against_reference"]["value"] is not None
        if has_value and arm["reference"] == reference and not arm["labelled"]:
            compared.append(name)
    return sorted(compared, key=lambda name: -arms[name]["gain"]["value"])


def _without_reference(arms: Mapping[str, Row]) -> str:
    best = ""
    for name, arm in arms.items():
        gain = arm["gain"]["value"]
        if gain is None or arm["labelled"]:
            continue
        if not best or gain > arms[best]["gain"]["value"]:
            best = name
    if not best:
        return "No run has finished yet, so nothing can be said."
    gain = told(arms[best]["gain"])
    return (
        f"The greatest gain without labels is that of {best}: {gain}. No arm has a reference to compare with."
    )


def _verdicts(arms: Mapping[str, Row], ranked: list[str], reference: str) -> list[str]:
    """Who is better than the reference, who is worse, and of whom neither is shown."""
    found: dict[str, list[str]] = {
        "Better than": [],
        "Worse than": [],
        "No difference shown to": [],
        "Too few seeds to compare with": [],
    }
    for name in ranked:
        row = arms[name]["against_reference"]
        if row["verdict"] in ("better", "worse"):
            found[f"{row['verdict'].capitalize()} than"].append(name)
        elif row["seeds"] < ENOUGH:
            found["Too few seeds to compare with"].append(name)
        else:
            found["No difference shown to"].append(name)
    return [f"{text} {reference}: {', '.join(names)}." for text, names in found.items() if names]


# ---- pieces of tables ----


def label(name: str, arm: Row) -> str:
    """An arm's name, with a mark where it learns from labels."""
    return f"{name} (labelled)" if arm["labelled"] else name


def told(row: Row) -> str:
    """A difference with its interval; a dash where there is none."""
    return f"{signed(row['value'])} {interval(row, True)}".strip()


def share(row: Row) -> str:
    """A share in percent."""
    return "–" if row["value"] is None else f"{row['value']:.0%}"


def share_interval(row: Row) -> str:
    """The ends of its interval."""
    return "" if row["low"] is None else f"[{row['low']:.0%}, {row['high']:.0%}]"


def took(study: Row) -> str:
    """The time of a study, as far as it is known."""
    cores = f"{minutes(study['seconds'])} of one core in their cycles"
    if not study["wall_seconds"]:
        return cores
    return f"{cores}, {minutes(study['wall_seconds'])} in all, {study['at_once']} at a time"


def minutes(seconds: float) -> str:
    """A time for reading."""
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"


def capitalized(text: str) -> str:
    """The text with a capital at its start."""
    return text[:1].upper() + text[1:]


def transfer_domains(study: Row) -> list[str]:
    """The domains on which any arm was evaluated, apart from its own."""
    domains: dict[str, None] = {}
    for arm in study["arms"].values():
        domains.update(dict.fromkeys(arm["transfer"]))
    return list(domains)
