"""Labelled examples that stand before a prompt (`--shots`): the only labels that a label-free run may use."""

from __future__ import annotations

from envs.domain import domain_names, load_domain
from envs.prompts import example_of
from envs.types import Kind
from envs.verify.truth import labelled_pairs

KINDS: tuple[Kind, ...] = ("forward", "inverse")


def draw_shots(domain: str, count: int) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """`count` examples of each domain, in both directions.

    Args:
        domain: as in the command's flag.

    Returns:
        (domain, kind of prompt) -> pairs of what was asked and answered.
    """
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    if count == 0:
        return found
    for name in domain_names(domain):
        about = load_domain(name)
        pairs = labelled_pairs(name, count)
        for kind in KINDS:
            found[name, kind] = [
                example_of(about, kind, task.text, command, task.tool) for task, command in pairs
            ]
    return found
