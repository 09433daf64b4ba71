"""Reads a YAML file and keeps the line of every key: for domains, blends of rewards, `--config` and studies.

Anything that is wrong with the file is one line: `FILE:LINE: key: what is wrong: what to do`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import SafeConstructor

from envs.files import BOM, not_utf8, open_file
from envs.messages import short
from envs.types import InputError

MOST_BYTES = 2**20
MOST_LEVELS = 50
MOST_VALUES = 100_000  # with aliases written out, so that a few lines cannot stand for billions of values
TOO_DEEP = f"more than {MOST_LEVELS} levels deep: write it flat, with no alias inside its own value"
TOO_MANY = f"the file has more than {MOST_VALUES:,} values: write fewer, or fewer aliases"
FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is there
TAG = "tag:yaml.org,2002:"

Step = str | int  # a key, or a place in a list
Location = Sequence[Step]  # from the top of the file


@dataclass
class YamlFile:
    """A file that was read.

    Attributes:
        name: the file's name in messages.
        data: its values: dicts, lists, texts, numbers, booleans and None.
        nodes: location -> PyYAML's node of the value, for those who must know how it is written.
    """

    name: str
    data: Any = None
    nodes: dict[tuple[Step, ...], yaml.Node] = field(default_factory=dict)
    _lines: dict[tuple[str, ...], int] = field(default_factory=dict)
    _sizes: dict[int, int] = field(default_factory=dict)  # id of a node -> values in it

    def existing(self, location: Location) -> tuple[Step, ...]:
        """The location without the steps that the file does not have."""
        found: tuple[Step, ...] = ()
        for step in location:
            if _as_texts((*found, step)) in self._lines:
                found = (*found, step)
        return found

    def line(self, location: Location) -> int:
        """The line of a key or of an entry of a list; of the one above it where the file does not have it."""
        steps = _as_texts(location)
        while steps and steps not in self._lines:
            steps = steps[:-1]
        return self._lines.get(steps, 1)

    def error(self, location: Location, problem: str) -> InputError:
        """`FILE:LINE: key.of[0].key: problem`."""
        return InputError(f"{self.name}:{self.line(location)}: {_dotted(location)}: {problem}")

    def add(self, location: tuple[Step, ...], node: yaml.Node) -> Any:
        """Notes where a value and all that is in it stand -> the value. For `read_yaml`."""
        if len(location) > MOST_LEVELS:
            raise self.error(location[:1], TOO_DEEP)
        if len(location) == 1 and len(self.nodes) + self._size(location, node) > MOST_VALUES:
            raise self.error(location, TOO_MANY)
        self.nodes[location] = node
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(location, node)
        if node.tag not in (f"{TAG}seq", f"{TAG}map"):
            raise self.error(location, f"the tag {node.tag} has no use here: remove it")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(location, node)
        values = []
        for place, entry in enumerate(node.value):
            here = (*location, place)
            self._lines[_as_texts(here)] = _line(entry.start_mark)
            values.append(self.add(here, entry))
        return values

    def _size(self, location: Location, node: yaml.Node) -> int:
        """Values in a node with its aliases written out, counted without writing them out."""
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) not in self._sizes:
            self._sizes[id(node)] = 0  # while it is counted
            inside = node.value
            if isinstance(node, yaml.MappingNode):
                inside = [value for _, value in node.value]
            self._sizes[id(node)] = 1 + sum(self._size(location, each) for each in inside)
        elif self._sizes[id(node)] == 0:  # it is inside itself
            raise self.error(location, TOO_DEEP)
        return self._sizes[id(node)]

    def _mapping(self, location: tuple[Step, ...], node: yaml.MappingNode) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        seen: dict[str, int] = {}  # the text of a key -> its line
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.error(location, "a key must be a text: put it in quotes")
            text, line = key_node.value, _line(key_node.start_mark)
            here = (*location, text)
            self._lines[_as_texts(here)] = line
            if text in seen:
                problem = f"this key is there twice, first in line {seen[text]}: remove or rename one"
                raise self.error(here, problem)
            seen[text] = line
            if key_node.tag == f"{TAG}merge":
                raise self.error(here, "YAML's merge key is not supported: write the keys out")
            key = self._scalar(here, key_node)
            if type(key) not in (str, int) or str(key) != text:
                raise self.error(here, f"YAML reads this key as {key}: put it in quotes")
            values[key] = self.add(here, value_node)
        return values

    def _scalar(self, location: Location, node: yaml.ScalarNode) -> Any:
        if node.tag == f"{TAG}timestamp":
            raise self.error(location, f"YAML reads {short(node.value)} as a date: put it in quotes")
        kind = node.tag.removeprefix(TAG)
        if kind not in ("str", "int", "float", "bool", "null"):
            raise self.error(
                location, f"{short(node.value)} has the YAML tag {kind}: remove it or use quotes"
            )
        try:
            value = SafeConstructor().construct_object(node)
            str(value)  # a number of too many digits for Python fails here at the latest
        except (ValueError, KeyError, IndexError):
            problem = f"{short(node.value)} is not a number that can be read: correct it or put it in quotes"
            raise self.error(location, problem) from None
        return value


def read_yaml(path: Path, name: str = "", flag: str = "") -> YamlFile:
    """Reads a file that holds one YAML document, or nothing (its data are None).

    Args:
        name: the file's name in messages, by default its path.
        flag: the flag that named the file, for messages about the file as a whole.

    Raises:
        FileNotFoundError: nothing is there.
        InputError: one line that says what is wrong.
    """
    name = name or str(path)
    with open_file(path, f"{flag} {name}".strip(), MOST_BYTES) as opened:
        raw = opened.read().removeprefix(BOM)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(name, raw.count(b"\n", 0, error.start) + 1, error) from None
    return parse_yaml(text, name)


def parse_yaml(text: str, name: str) -> YamlFile:
    """The same for a text; InputError says what is wrong with it."""
    file = YamlFile(name)
    root = _compose(text, name)
    if root is not None:
        file.data = file.add((), root)
    return file


def as_number(value: Any) -> float | None:
    """A finite number, or None for anything else. The text 1e-3 counts: to YAML it is no number."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        return _compose_with(FAST_LOADER, text, name)
    except yaml.YAMLError:
        pass
    try:
        return _compose_with(yaml.SafeLoader, text, name)  # says better what is wrong
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"the character U+{error.character:04X} must not be in a YAML file"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = _line(mark)
        problem = str(error.problem).removeprefix("but ")
        if "\\t" in problem:
            problem = "a tab cannot stand here, use spaces"
    raise InputError(f"{name}:{line}: not valid YAML: {problem}: fix or quote this line")


def _compose_with(loader: Any, text: str, name: str) -> yaml.Node | None:
    """PyYAML composes recursively, so the depth is measured before."""
    levels = 0
    for event in yaml.parse(text, loader):
        if isinstance(event, yaml.CollectionStartEvent):
            levels += 1
            if levels > MOST_LEVELS:
                line = _line(event.start_mark)
                raise InputError(f"{name}:{line}: nested more than {MOST_LEVELS} levels deep: write it flat")
        elif isinstance(event, yaml.CollectionEndEvent):
            levels -= 1
    node: yaml.Node | None = yaml.compose(text, loader)
    return node


def _line(mark: Any) -> int:
    return 1 if mark is None else mark.line + 1


def _as_texts(location: Location) -> tuple[str, ...]:
    return tuple(map(str, location))


def _dotted(location: Location) -> str:
    text = ""
    for step in location:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".") or "the file"
