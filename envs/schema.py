"""Reads a domain's YAML file and says what is wrong with it: one line with the file, the line, the key and the fix.

The specification holds the reference commands, so only `envs.domain`, which drops them, and `envs.verify` may load it.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from envs.grammar import (
    CHOICE,
    MOST_WORDINGS,
    PLACEHOLDER,
    UNCLOSED,
    Among,
    ByQuery,
    Choice,
    Column,
    DomainSpec,
    IntentSpec,
    Key,
    Refers,
    Slot,
    Table,
    Unique,
    Verify,
    Whole,
    wordings,
)
from envs.messages import did_you_mean, short
from envs.types import InputError

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "domains"
EMBEDDED = ("network", "shell", "sql")
PROMPT_FIELDS = {
    "forward": ({"task"}, {"tool"}),
    "inverse": ({"command"}, set()),
    "propose": (set(), {"tool"}),
    "judge": ({"task", "command"}, set()),
    "rate": ({"task", "reconstruction"}, set()),
    "revise": ({"task", "command"}, {"principle"}),
}


def domain_path(where: str) -> Path:
    """The file of an embedded domain's name, or the path itself."""
    return CONFIGS / f"{where}.yaml" if where in EMBEDDED else Path(where)


@functools.lru_cache(maxsize=32)
def load_spec(where: str) -> DomainSpec:
    """The checked file with its reference commands. Training code has no use for it and must not call it."""
    path = domain_path(where)
    node, data = _read(path, where)
    try:
        spec = DomainSpec.model_validate(data)
    except ValidationError as error:
        raise InputError(_explain(path, node, error)) from None
    for location, problem in _cross_checks(spec):
        raise InputError(f"{path}:{_line(node, location)}: {_dotted(location)}: {problem}")
    return spec


def fault(where: str, location: tuple[str | int, ...], problem: str) -> InputError:
    """A mistake that shows only when the grammar is used, with its place in the file."""
    path = domain_path(where)
    return InputError(f"{path}:{_line(_read(path, where)[0], location)}: {_dotted(location)}: {problem}")


def _read(path: Path, where: str) -> tuple[yaml.Node, Any]:
    """The file as YAML nodes, which know their lines, and as plain values."""
    try:
        raw = path.read_bytes()
    except IsADirectoryError:
        raise InputError(
            f"--domain {where}: a folder, not a file: give the path of a YAML file in it"
        ) from None
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"--domain {where}: no such domain or file: {_elsewhere(path, where)}") from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"--domain {short(where)}: cannot be read: {getattr(error, 'strerror', None) or error}: mend the path"
        ) from None
    try:
        text = raw.decode("utf-8")
        node = _compose(text)
        if not isinstance(node, yaml.MappingNode):
            raise InputError(
                f"{path}:1: the file: must be a mapping with the keys {', '.join(DomainSpec.model_fields)}: write them"
            )
        for location, problem in _odd_values(node, (), set()):
            raise InputError(f"{path}:{_line(node, location)}: {_dotted(location)}: {problem}")
        loader = yaml.SafeLoader("")
        return node, loader.construct_document(node)
    except UnicodeDecodeError as error:
        line, problem = (
            raw.count(b"\n", 0, error.start) + 1,
            f"the byte 0x{raw[error.start]:02x} is not UTF-8",
        )
    except yaml.reader.ReaderError as error:
        line, problem = (
            text.count("\n", 0, error.position) + 1,
            f"the character U+{error.character:04X} must not be in a YAML file",
        )
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, problem = mark.line + 1 if mark else 1, str(error.problem).removeprefix("but ")
        if "\\t" in problem:
            problem = "a tab cannot stand here, use spaces"
    except RecursionError:
        line, problem = 1, "too deeply nested"
    except ValueError as error:
        line, problem = 1, str(error)
    raise InputError(f"{path}:{line}: not valid YAML: {problem}: mend or quote this line")


def _compose(text: str) -> yaml.Node | None:
    try:  # ten times as fast, where libyaml is there
        return yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError):
        return yaml.compose(text, Loader=yaml.SafeLoader)  # says better what is wrong


def _elsewhere(path: Path, where: str) -> str:
    """What a name or path that does not exist may have been meant to be."""
    known = (*EMBEDDED, "all")
    try:
        beside = [
            str(path.parent / other.name)
            for other in path.parent.iterdir()
            if other.suffix in (".yaml", ".yml")
        ]
    except OSError:
        beside = []
    anything = f"use one of {', '.join(known)}, or the path of a YAML file"
    return did_you_mean(where, known, did_you_mean(path, sorted(beside), anything))


def _odd_values(
    node: yaml.Node, location: tuple[str | int, ...], seen: set[int]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What YAML would read otherwise than its writer thought: repeated keys, `no`, `010`, `12:30`, `1.5`, a date, nothing at all."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        if problem := _odd_scalar(node):
            yield location, problem
    elif isinstance(node, yaml.SequenceNode):
        for place, value in enumerate(node.value):
            yield from _odd_values(value, (*location, place), seen)
    elif isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                yield location, "a key must be a text: put it in quotes"
                continue
            if problem := _odd_scalar(key):
                yield (*location, key.value), problem
            if key.value in keys:
                second = "" if key.start_mark is None else f" (again in line {key.start_mark.line + 1})"
                yield (*location, key.value), f"this key is there twice{second}: drop or rename one"
            keys.add(key.value)
            if (
                node.flow_style
                and isinstance(value, yaml.ScalarNode)
                and value.value == ""
                and value.tag.endswith(":null")
            ):
                yield location, f"YAML takes {{{key.value}}} for a mapping: put the text in quotes"
            yield from _odd_values(value, (*location, key.value), seen)


def _odd_scalar(node: yaml.ScalarNode) -> str:
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if kind == "null":
        return "is empty: fill it in or drop it"
    if kind == "bool":
        return f"YAML reads {node.value} as true or false, which nothing here is: put it in quotes"
    if kind in ("float", "timestamp"):
        return f"YAML reads {node.value} as a {'date' if kind == 'timestamp' else 'fraction'}: write a whole number, or put it in quotes"
    if kind == "int":
        try:
            value = str(yaml.SafeLoader("").construct_yaml_int(node))
        except ValueError:
            return f"{short(node.value)} is not a number that can be read: write another, or put it in quotes"
        if value != node.value:
            return f"YAML reads {node.value} as {value}: write that, or put it in quotes"
    return ""


def _cross_checks(spec: DomainSpec) -> Iterator[tuple[tuple[str | int, ...], str]]:
    for kind, (required, optional) in PROMPT_FIELDS.items():
        if kind not in spec.prompts:
            yield ("prompts",), f"the prompt {kind!r} is missing: add it"
        found = set(PLACEHOLDER.findall(spec.prompts[kind]))  # type: ignore[index]
        if missing := sorted(required - found):
            yield ("prompts", kind), f"{{{missing[0]}}} is missing: put it where the model should see it"
        if extra := sorted(found - required - optional):
            use = ", ".join(f"{{{name}}}" for name in sorted(required | optional))
            yield ("prompts", kind), f"{{{extra[0]}}} is not known here: use {use}"
    names: set[str] = set()
    read: dict[str, str] = {}  # wording -> the intent that it belongs to
    for i, intent in enumerate(spec.intents):
        if intent.name in names:
            yield ("intents", i, "name"), f"{intent.name!r} is used twice: rename one"
        names.add(intent.name)
        if intent.tool not in spec.tools:
            yield (
                ("intents", i, "tool"),
                f"{intent.tool!r} is not in tools: {did_you_mean(intent.tool, spec.tools, 'add it there')}",
            )
        wanted = set(PLACEHOLDER.findall(intent.command))
        if unknown := sorted(wanted - set(spec.slots)):
            fix = f"declare it there, or write {{ {unknown[0]} }} for braces"
            yield (
                ("intents", i, "command"),
                f"{{{unknown[0]}}} is not in slots: {did_you_mean(unknown[0], spec.slots, fix)}",
            )
        if problem := _misspelt(intent.command, spec.slots):
            yield ("intents", i, "command"), problem
        trained: set[str] = set()  # wordings of the earlier paraphrases of this intent
        for j, paraphrase in enumerate(intent.paraphrases):
            for problem in _paraphrase_faults(paraphrase, wanted, spec.slots):
                yield ("intents", i, "paraphrases", j), problem
            own = {wording.lower() for wording in wordings(paraphrase)}
            for wording in sorted(own):
                if read.setdefault(wording, intent.name) != intent.name:
                    yield (
                        ("intents", i, "paraphrases", j),
                        f"can read {wording!r}, as intent {read[wording]!r} can: reword one",
                    )
            if j == len(intent.paraphrases) - 1 and (shared := sorted(own & trained)):
                yield (
                    ("intents", i, "paraphrases", j),
                    f"is held out but can read {shared[0]!r}, as an earlier one can: reword one",
                )
            trained |= own
    if isinstance(spec.verify, ByQuery):
        yield from _table_faults(spec.verify.tables, spec.slots)


def _table_faults(
    tables: Mapping[str, Table], slots: Mapping[str, Any]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What cannot be filled, or cannot be created in SQLite."""
    keyed = [
        name
        for name, table in tables.items()
        if any(isinstance(column, Key) for column in table.columns.values())
    ]
    choices = [name for name, slot in slots.items() if isinstance(slot, Choice)]
    for problem, name in _name_faults(tables):
        yield ("verify", "tables", name), problem
    for name, table in tables.items():
        here = ("verify", "tables", name, "columns")
        for problem, column_name in _name_faults(table.columns):
            yield (*here, column_name), problem
        if len(keys := [key for key, column in table.columns.items() if isinstance(column, Key)]) > 1:
            yield (*here, keys[1]), f"is a second key beside {keys[0]!r}: fill one of them otherwise"
        for column_name, column in table.columns.items():
            if isinstance(column, Among) and column.slot and column.slot not in choices:
                yield (
                    (*here, column_name, "slot"),
                    f"{column.slot!r} is not a choice slot: {did_you_mean(column.slot, choices, 'write values')}",
                )
            if isinstance(column, Refers) and column.to not in keyed:
                if column.to in tables:
                    problem = "has no column with fill: key: add one or name another table"
                else:
                    problem = f"is not in tables: {did_you_mean(column.to, keyed, 'add it there')}"
                yield (*here, column_name, "to"), f"{column.to!r} {problem}"
            many = table.rows  # how many values there are to draw from
            if isinstance(column, Unique):
                many = len(column.texts())
            elif isinstance(column, Whole) and column.repeats == "never":
                many = column.high - column.low + 1
            if many < table.rows:
                yield (
                    (*here, column_name),
                    f"has {many} different values for {table.rows} rows: give it more, or the table fewer rows",
                )


def _name_faults(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Names that SQLite refuses, though each has only letters, digits and underscores."""
    seen: dict[str, str] = {}
    for name in names:
        if name.lower().startswith("sqlite_"):
            yield f"names that start with {name[:7]!r} are SQLite's own: rename it", name
        if seen.setdefault(name.lower(), name) != name:
            yield (
                f"differs from {seen[name.lower()]!r} in letter case alone, which SQLite does not see: rename one",
                name,
            )


def _paraphrase_faults(paraphrase: str, wanted: set[str], slots: Mapping[str, Any]) -> Iterator[str]:
    count = math.prod(match[1].count("|") + 1 for match in CHOICE.finditer(paraphrase))
    if count > MOST_WORDINGS:
        yield f"has {count:,} wordings, more than {MOST_WORDINGS:,}: split it into several paraphrases"
    found = set(PLACEHOLDER.findall(paraphrase))
    if missing := sorted(wanted - found):
        near = _misspelt(paraphrase, slots)
        yield near or f"{{{missing[0]}}} is in the command but not here: the task must say it"
    if extra := sorted(found - wanted):
        yield f"{{{extra[0]}}} is not in the command: {did_you_mean(extra[0], sorted(wanted), 'remove it')}"
    if problem := _misspelt(paraphrase, slots):
        yield problem
    for wording in wordings(paraphrase):
        if not wording:
            yield "can be empty: leave one word outside the brackets"
        if UNCLOSED.search(wording):
            yield "a bracket with | is nested or not closed: write (a|b), and no bracket in it"
        if missing := sorted(wanted - set(PLACEHOLDER.findall(wording))):
            yield f"{{{missing[0]}}} is missing where it reads {wording!r}: every alternative must say it"
        if set(PLACEHOLDER.findall(wording)) - wanted:
            yield f"brackets and braces are mixed up where it reads {wording!r}: keep each {{slot}} whole"


def _misspelt(text: str, slots: Mapping[str, Any]) -> str:
    """Braces that are literal, but only by a capital, a space or a dash."""
    for match in re.finditer(r"\{([\w -]+)\}", text):
        name = match[1].strip().lower().replace("-", "_").replace(" ", "_")
        if match[1] != name and not match[1].startswith(" ") and name in slots:
            return f"{match[0]} is not a placeholder: write {{{name}}}"
    return ""


def _explain(path: Path, node: yaml.Node, error: ValidationError) -> str:
    """The first mistake of the file in words; an unknown key comes before the missing one that it may have been meant for."""
    problems = [(_existing(node, fault["loc"]), fault) for fault in error.errors()]
    location, fault = min(
        problems, key=lambda problem: (problem[1]["type"] != "extra_forbidden", _line(node, problem[0]))
    )
    message = _message(fault["type"], fault["loc"], fault["input"], fault.get("ctx", {}), fault["msg"])
    return f"{path}:{_line(node, location)}: {_dotted(location)}: {message}"


def _message(
    problem: str, location: tuple[str | int, ...], value: Any, facts: Mapping[str, Any], message: str
) -> str:
    key, found = str(location[-1]), f"(found {short(value)})"
    if problem == "missing":
        return f"the key {key!r} is missing: add it"
    if problem == "extra_forbidden":
        return f"unknown key {key!r}: {did_you_mean(key, _known_keys(location))}"
    if problem == "union_tag_not_found":
        return f"the key {facts['discriminator']} is missing: use one of {', '.join(_members(location))}"
    if problem == "union_tag_invalid":
        kinds, tag = list(_members(location)), str(facts["tag"])
        fix = did_you_mean(tag, kinds, "correct it")
        return f"unknown {facts['discriminator'][1:-1]} {tag!r}, must be one of {', '.join(kinds)}: {fix}"
    if problem == "literal_error" and key == "[key]":
        return f"unknown prompt {value!r}: {did_you_mean(value, PROMPT_FIELDS)}"
    if problem == "literal_error":
        return f"must be {facts['expected']} {found}: correct it"
    if problem == "too_short":
        return f"needs at least {facts['min_length']} of them, has {facts['actual_length']}: add the missing ones"
    if problem == "greater_than_equal":
        return f"must be {facts['ge']} or more {found}: correct it"
    if problem == "less_than_equal":
        return f"must be {facts['le']} or less {found}: correct it"
    if problem == "string_pattern_mismatch":
        if facts["pattern"] == r"\S":
            return "is empty: fill it in or drop it"
        if location[0] == "verify":
            return (
                f"{short(value)} may have only letters, digits and underscores, and no digit first: rename it"
            )
        letters = (
            "letters, digits and dashes" if "A-Z" in facts["pattern"] else "small letters, digits and dashes"
        )
        return f"{short(value)} may have only {letters if key != '[key]' else 'small letters, digits and underscores'}: rename it"
    if problem == "string_type":
        return f"must be a text {found}: write one, in quotes if need be"
    if problem == "list_type":
        return f"must be a list {found}: write [a, b], or one entry a line after a dash"
    if problem.startswith("int_"):
        return f"must be a whole number {found}: correct it"
    if problem in {"dict_type", "model_type", "model_attributes_type"}:
        return f"must be a mapping {found}: write key: value"
    return (
        message.removeprefix("Value error, ")
        if problem == "value_error"
        else f"{message} {found}: correct it"
    )


def _known_keys(location: Sequence[str | int]) -> list[str]:
    """The keys that may stand where an unknown one, the last step of a pydantic location, was found."""
    model: type[BaseModel] = DomainSpec
    if location[0] == "intents":
        model = IntentSpec
    elif location[0] == "verify" and len(location) == 5:  # verify, sql, tables, name of the table, key
        model = Table
    elif location[0] in ("slots", "verify"):
        model = _members(location[:-2])[str(location[-2])]
    return list(model.model_fields)


def _members(location: Sequence[str | int]) -> dict[str, type[BaseModel]]:
    """Value of the key that tells apart the kinds of mapping that may stand at a place -> their records."""
    union, key = (
        (Slot, "kind")
        if location[0] == "slots"
        else (Verify, "kind")
        if len(location) == 1
        else (Column, "fill")
    )
    return {
        get_args(member.model_fields[key].annotation)[0]: member for member in get_args(get_args(union)[0])
    }


def _dotted(location: Sequence[str | int]) -> str:
    return (
        "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
        or "the file"
    )


def _child(node: Any, part: str | int) -> tuple[Any, Any] | None:
    """(node that marks the key, node of the value) of one step down, or None where the file has no such step."""
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if key.value == str(part)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None


def _existing(node: yaml.Node | None, location: Sequence[str | int]) -> tuple[str | int, ...]:
    """The steps of a pydantic location that the file has; the names of union members are not steps of the file."""
    found: list[str | int] = []
    for part in location:
        step = _child(node, part)
        if step is not None:
            found.append(part)
            node = step[1]
    return tuple(found)


def _line(node: Any, location: Sequence[str | int]) -> int:
    line = 1
    for part in location:
        step = _child(node, part)
        if step is None:
            break
        line = step[0].start_mark.line + 1
        node = step[1]
    return line
