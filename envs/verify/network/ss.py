"""Ss of iproute2: options and states. Its filter expressions are read by `ss_filter`."""

from __future__ import annotations

from collections.abc import Sequence

from envs.verify.network import tables
from envs.verify.network.options import Fields, Found, aside, collect, read_table, scan
from envs.verify.network.ss_filter import parse_filter, show_filter
from envs.verify.network.values import NoMeaning

FAMILIES = {
    "-4": "inet",
    "-6": "inet6",
    "-0": "link",
    "-x": "unix",
    "--tipc": "tipc",
    "--vsock": "vsock",
    "--xdp": "xdp",
}


def ss(words: Sequence[str]) -> Fields:
    """Ss of iproute2: options, then states, then an expression."""
    found, operands = scan("ss", read_table(tables.SS), words, long=True)
    families, others = aside(found, *FAMILIES, "-f")
    fields = collect("ss", others)
    if families:
        fields["-f"] = _families(families)
    if "-A" in fields:
        fields["-A"] = _tables(aside(others, "-A")[0])
    states, expression = _states(operands)
    if states is not None:
        fields["state"] = ",".join(sorted(states))
    if conditions := " ".join(expression).split():
        fields["filter"] = show_filter(parse_filter(conditions))
    return fields


def _families(found: Found) -> str:
    chosen = {FAMILIES.get(option.name, value or "") for option, value in found}
    if unknown := chosen - tables.SS_FAMILIES:
        raise NoMeaning(f"ss -f: {min(unknown)!r} is not a family")
    return ",".join(sorted(chosen))


def _tables(found: Found) -> str:
    """The socket tables of all options -A: a set, or in order where one of them excludes a table."""
    named: list[str] = []
    for _, value in found:
        named += (value or "").split(",")
    for name in named:
        if name.removeprefix("!").lower() not in tables.SS_TABLES:
            raise NoMeaning(f"ss -A: {name!r} is not a socket table")
    excluding = any(name.startswith("!") for name in named)
    return ",".join(named if excluding else sorted(set(named)))


def _states(operands: Sequence[str]) -> tuple[frozenset[str] | None, Sequence[str]]:
    """The states that the first operands ask for, None where they ask for none, and the other operands."""
    states: frozenset[str] | None = None
    while operands and operands[0] in ("state", "exclude", "excl"):
        if len(operands) < 2:
            raise NoMeaning(f"ss {operands[0]} needs a state")
        named = tables.SS_STATES.get(operands[1].lower())
        if named is None:
            raise NoMeaning(f"ss: {operands[1]!r} is not a state")
        if operands[0] == "state":
            states = named if states is None else states | named
        else:
            states = (tables.SS_STATES["all"] if states is None else states) - named
        operands = operands[2:]
    return states, operands
