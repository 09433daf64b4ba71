"""Whether the prompts, intents, slots and tables of a domain fit together, which pydantic cannot check."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from envs.grammar import (
    CHOICE,
    DEFAULT_PROMPTS,
    MOST_WORDINGS,
    PLACEHOLDER,
    PROMPT_FIELDS,
    UNCLOSED,
    Among,
    ByQuery,
    Choice,
    Column,
    DomainSpec,
    IntentSpec,
    Key,
    Refers,
    Table,
    Unique,
    Whole,
    wordings,
)
from envs.messages import did_you_mean
from envs.yamlfile import Step

Slots = Mapping[str, Any]
Fault = tuple[tuple[Step, ...], str]  # where in the file, what is wrong and what to do


def faults(spec: DomainSpec) -> Iterator[Fault]:
    """Everything that does not fit together."""
    yield from _prompt_faults(spec)
    yield from _intent_faults(spec)
    yield from _wording_faults(spec)
    if isinstance(spec.verify, ByQuery):
        yield from _table_faults(spec.verify.tables, spec.slots)


def _placeholders(text: str) -> set[str]:
    return set(PLACEHOLDER.findall(text))


def _prompt_faults(spec: DomainSpec) -> Iterator[Fault]:
    for kind, (required, optional) in PROMPT_FIELDS.items():
        if kind not in spec.prompts and kind in DEFAULT_PROMPTS:
            continue
        if kind not in spec.prompts:
            yield ("prompts",), f"the prompt {kind!r} is missing: add it"
            continue
        found = _placeholders(spec.prompts[kind])
        for name in sorted(required - found):
            yield ("prompts", kind), f"{{{name}}} is missing: put it where the model should see it"
        allowed = ", ".join(f"{{{name}}}" for name in sorted(required | optional))
        for name in sorted(found - required - optional):
            yield ("prompts", kind), f"{{{name}}} is not known here: use {allowed}"


def _intent_faults(spec: DomainSpec) -> Iterator[Fault]:
    names: set[str] = set()
    for i, intent in enumerate(spec.intents):
        if intent.name in names:
            yield ("intents", i, "name"), f"{intent.name!r} is used twice: rename one"
        names.add(intent.name)
        if intent.tool not in spec.tools:
            fix = did_you_mean(intent.tool, spec.tools, "add it there")
            yield ("intents", i, "tool"), f"{intent.tool!r} is not in tools: {fix}"
        for problem in _command_faults(intent, spec.slots):
            yield ("intents", i, "command"), problem
        wanted = _placeholders(intent.command)
        for j, paraphrase in enumerate(intent.paraphrases):
            for problem in _paraphrase_faults(paraphrase, wanted, spec.slots):
                yield ("intents", i, "paraphrases", j), problem


def _command_faults(intent: IntentSpec, slots: Slots) -> Iterator[str]:
    for name in sorted(_placeholders(intent.command) - set(slots)):
        fix = did_you_mean(name, slots, f"declare it there, or write {{ {name} }} for braces")
        yield f"{{{name}}} is not in slots: {fix}"
    yield from _misspelt(intent.command, slots)


def _paraphrase_faults(paraphrase: str, wanted: set[str], slots: Slots) -> Iterator[str]:
    count = 1
    for choice in CHOICE.finditer(paraphrase):
        count *= choice[1].count("|") + 1
    if count > MOST_WORDINGS:
        yield f"has {count:,} wordings, more than {MOST_WORDINGS:,}: split it into several paraphrases"
    yield from _misspelt(paraphrase, slots)
    found = _placeholders(paraphrase)
    for name in sorted(wanted - found):
        yield f"{{{name}}} is in the command but not here: the task must say it"
    for name in sorted(found - wanted):
        yield f"{{{name}}} is not in the command: {did_you_mean(name, sorted(wanted), 'remove it')}"
    for wording in wordings(paraphrase):
        if not wording:
            yield "can be empty: leave one word outside the brackets"
        if UNCLOSED.search(wording):
            yield "a bracket with | is nested or not closed: write (a|b), and no bracket in it"
        found = _placeholders(wording)
        for name in sorted(wanted - found):
            yield f"{{{name}}} is missing where it reads {wording!r}: every alternative must say it"
        if found - wanted:
            yield f"brackets and braces are mixed up where it reads {wording!r}: keep each {{slot}} whole"


def _misspelt(text: str, slots: Slots) -> Iterator[str]:
    """Braces that are literal only because of a capital, a space or a dash."""
    for match in re.finditer(r"\{([\w -]+)\}", text):
        name = match[1].strip().lower().replace("-", "_").replace(" ", "_")
        if match[1] != name and not match[1].startswith(" ") and name in slots:
            yield f"{match[0]} is not a placeholder: write {{{name}}}"


def _wording_faults(spec: DomainSpec) -> Iterator[Fault]:
    """Sentences that two intents share, or that an intent both trains on and holds out."""
    intent_of: dict[str, str] = {}  # wording -> the first intent that can read it
    for i, intent in enumerate(spec.intents):
        trained: set[str] = set()
        last = len(intent.paraphrases) - 1  # the paraphrase that is held out
        for j, paraphrase in enumerate(intent.paraphrases):
            here = ("intents", i, "paraphrases", j)
            own = {wording.lower() for wording in wordings(paraphrase)}
            for wording in sorted(own):
                other = intent_of.setdefault(wording, intent.name)
                if other != intent.name:
                    yield here, f"can read {wording!r}, as intent {other!r} can: reword one"
            if j == last:
                for wording in sorted(own & trained):
                    yield here, f"is held out but can read {wording!r}, as an earlier one can: reword one"
            trained |= own


def _table_faults(tables: Mapping[str, Table], slots: Slots) -> Iterator[Fault]:
    """What cannot be filled, or cannot be created in SQLite."""
    for name, problem in _name_faults(tables):
        yield ("verify", "tables", name), problem
    for name, table in tables.items():
        here = ("verify", "tables", name, "columns")
        for column_name, problem in _name_faults(table.columns):
            yield (*here, column_name), problem
        keys = _keys(table)
        if len(keys) > 1:
            problem = f"is a second key besides {keys[0]!r}: fill one of them otherwise"
            yield (*here, keys[1]), problem
        for column_name, column in table.columns.items():
            for step, problem in _column_faults(column, table.rows, tables, slots):
                yield (*here, column_name, *step), problem


def _keys(table: Table) -> list[str]:
    return [name for name, column in table.columns.items() if isinstance(column, Key)]


def _column_faults(column: Column, rows: int, tables: Mapping[str, Table], slots: Slots) -> Iterator[Fault]:
    if isinstance(column, Among) and column.slot:
        choices = [name for name, slot in slots.items() if isinstance(slot, Choice)]
        if column.slot not in choices:
            fix = did_you_mean(column.slot, choices, "write values")
            yield ("slot",), f"{column.slot!r} is not a choice slot: {fix}"
    if isinstance(column, Refers):
        if column.to not in tables:
            keyed = [name for name, table in tables.items() if _keys(table)]
            yield ("to",), f"{column.to!r} is not in tables: {did_you_mean(column.to, keyed, 'add it there')}"
        elif not _keys(tables[column.to]):
            yield ("to",), f"{column.to!r} has no column with fill: key: add one or name another table"
    values = math.inf  # how many different ones there are for columns that never repeat one
    if isinstance(column, Unique):
        values = len(column.texts())
    elif isinstance(column, Whole) and column.repeats == "never":
        values = column.high - column.low + 1
    if values < rows:
        problem = f"has {values} different values for {rows} rows: give it more, or the table fewer rows"
        yield (), problem


def _name_faults(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Names that SQLite refuses, though each has only letters, digits and underscores."""
    first_spelling: dict[str, str] = {}
    for name in names:
        if name.lower().startswith("sqlite_"):
            yield name, f"names that start with {name[:7]!r} are SQLite's own: rename it"
        other = first_spelling.setdefault(name.lower(), name)
        if other != name:
            problem = f"differs from {other!r} in letter case alone, which SQLite does not see: rename one"
            yield name, problem
