"""Reads a domain's YAML file. A mistake is named in one line: `FILE:LINE: key: what is wrong: what to do`.

The specification holds the reference commands, so only `envs.domain`, which drops them, and `envs.verify` may
load it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from envs.grammar import Column, DomainSpec, ExampleSpec, IntentSpec, Slot, Table, Verify
from envs.messages import did_you_mean, short
from envs.schema_checks import faults
from envs.types import InputError
from envs.yamlfile import TAG, Step, YamlFile, read_yaml

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "domains"
EMBEDDED = ("network", "shell", "sql")


def domain_path(where: str) -> Path:
    """The file of an embedded domain's name, or the path itself."""
    return CONFIGS / f"{where}.yaml" if where in EMBEDDED else Path(where)


@functools.lru_cache(maxsize=32)
def load_spec(where: str) -> DomainSpec:
    """The checked file with its reference commands. Training code has no use for it and must not call it.

    Raises:
        InputError: `FILE:LINE: key: what is wrong: what to do`.
    """
    file = _read(where)
    try:
        spec = DomainSpec.model_validate(file.data)
    except ValidationError as error:
        raise _first_mistake(file, error) from None
    for location, problem in faults(spec):
        raise file.error(location, problem)
    return spec


def fault(where: str, location: Sequence[Step], problem: str) -> InputError:
    """A mistake that shows only when the grammar is used, with its place in the file."""
    return _read(where).error(location, problem)


def _read(where: str) -> YamlFile:
    path = domain_path(where)
    try:
        file = read_yaml(path, flag="--domain")
    except FileNotFoundError:
        raise InputError(f"--domain {where}: no such domain or file: {_elsewhere(path, where)}") from None
    if not isinstance(file.data, dict):
        keys = ", ".join(DomainSpec.model_fields)
        raise file.error((), f"must be a mapping with the keys {keys}: write them")
    for location, node in file.nodes.items():
        problem = _surprise(node)
        if problem:
            raise file.error(location, problem)
    return file


def _elsewhere(path: Path, where: str) -> str:
    """What a name or path that does not exist may have been meant to be."""
    known = (*EMBEDDED, "all")
    anything = f"use one of {', '.join(known)}, or the path of a YAML file"
    neighbours: list[str] = []
    if path.parent.is_dir():
        neighbours = sorted(str(other) for other in path.parent.glob("*.y*ml"))
    return did_you_mean(where, known, did_you_mean(path, neighbours, anything))


def _surprise(node: yaml.Node) -> str:
    """Why YAML reads a value other than its writer meant it: `no`, `010`, `12:30`, `1.5`, `{slot}`."""
    if isinstance(node, yaml.MappingNode) and node.flow_style:
        for key, value in node.value:
            if value.tag == f"{TAG}null" and value.value == "":
                return f"YAML takes {{{key.value}}} for a mapping: put the text in quotes"
    if not isinstance(node, yaml.ScalarNode):
        return ""
    kind = node.tag.removeprefix(TAG)
    if kind == "null":
        return "is empty: fill it in or remove it"
    if kind == "bool":
        return f"YAML reads {node.value} as true or false, which has no use here: put it in quotes"
    if kind == "float":
        return f"YAML reads {node.value} as a fraction: write a whole number, or put it in quotes"
    if kind == "int":
        value = str(yaml.safe_load(node.value))
        if value != node.value:
            return f"YAML reads {node.value} as {value}: write that, or put it in quotes"
    return ""


# ---- pydantic's errors in words ----


def _kinds(union: Any, key: str) -> dict[str, type[BaseModel]]:
    """Of a union of records that a key tells apart: value of the key -> record."""
    members = get_args(get_args(union)[0])
    kinds = {}
    for member in members:
        kinds[get_args(member.model_fields[key].annotation)[0]] = member
    return kinds


SLOTS = _kinds(Slot, "kind")
VERIFICATIONS = _kinds(Verify, "kind")
COLUMNS = _kinds(Column, "fill")

# Kind of pydantic's error -> the message. {found} is the value; the other fields are pydantic's own.
MESSAGES = {
    "missing": "the key {key!r} is missing: add it",
    "literal_error": "must be {expected} (found {found}): correct it",
    "too_short": "needs at least {min_length} entries, has {actual_length}: add the missing ones",
    "greater_than_equal": "must be {ge} or more (found {found}): correct it",
    "less_than_equal": "must be {le} or less (found {found}): correct it",
    "value_error": "{error}",
    "string_type": "must be a text (found {found}): write one, in quotes if need be",
    "list_type": "must be a list (found {found}): write [a, b], or one entry per line after a dash",
    "int_type": "must be a whole number (found {found}): correct it",
    "int_parsing": "must be a whole number (found {found}): correct it",
    "int_parsing_size": "must be a whole number (found {found}): correct it",
    "int_from_float": "must be a whole number (found {found}): correct it",
    "dict_type": "must be a mapping (found {found}): write key: value",
    "model_type": "must be a mapping (found {found}): write key: value",
    "model_attributes_type": "must be a mapping (found {found}): write key: value",
}


def _first_mistake(file: YamlFile, error: ValidationError) -> InputError:
    """The error for the first mistake in the file.

    An unknown key comes before all others: it may be what a missing one was meant to be.
    """

    def order(mistake: Mapping[str, Any]) -> tuple[bool, int]:
        return mistake["type"] != "extra_forbidden", file.line(file.existing(mistake["loc"]))

    first = min(error.errors(), key=order)
    return file.error(file.existing(first["loc"]), _message(first))


def _message(mistake: Mapping[str, Any]) -> str:
    kind, location, facts = mistake["type"], mistake["loc"], mistake.get("ctx", {})
    key = str(location[-1])
    if kind == "extra_forbidden":
        return f"unknown key {key!r}: {did_you_mean(key, _record_at(location[:-1]).model_fields)}"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        kinds = list(_kinds_at(location))
        allowed, discriminator = ", ".join(kinds), facts["discriminator"].strip("'")
        if kind == "union_tag_not_found":
            return f"the key {discriminator!r} is missing: use one of {allowed}"
        fix = did_you_mean(facts["tag"], kinds, "correct it")
        return f"unknown {discriminator} {facts['tag']!r}, must be one of {allowed}: {fix}"
    found = short(mistake["input"])
    template = MESSAGES.get(kind, "{message} (found {found}): correct it")
    return template.format_map({**facts, "key": key, "found": found, "message": mistake["msg"]})


def _kinds_at(location: Sequence[Step]) -> Mapping[str, type[BaseModel]]:
    """The kinds of record that may stand at a location, the last step of which is their key in the file."""
    if location[0] == "slots":
        return SLOTS
    return VERIFICATIONS if len(location) == 1 else COLUMNS


def _record_at(location: Sequence[Step]) -> type[BaseModel]:
    """The record at a location as pydantic gives it: a record of several kinds has its kind as a step."""
    match list(location):
        case ["intents", _]:
            return IntentSpec
        case ["examples", _]:
            return ExampleSpec
        case ["slots", _, kind]:
            return SLOTS[str(kind)]
        case ["verify", kind]:
            return VERIFICATIONS[str(kind)]
        case ["verify", _, "tables", _]:
            return Table
        case ["verify", _, "tables", _, "columns", _, kind]:
            return COLUMNS[str(kind)]
    return DomainSpec
