"""The flags of a command line, parsed by tyro; what is wrong with them in one line of our own."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import os
import re
import typing
from collections.abc import Mapping
from typing import Any

from agents.cli.values import convert
from envs.messages import did_you_mean, short
from envs.types import InputError


def field_names(config_type: type) -> list[str]:
    """The fields of a configuration, in their order."""
    return [field.name for field in dataclasses.fields(config_type)]


def given_flags(config_type: type, hints: Mapping[str, Any], argv: list[str], agent: str) -> dict[str, Any]:
    """The fields that flags were given for, and their values."""
    import tyro

    words: dict[str, str] = {}  # field -> the word after its flag
    arguments: list[str] = []
    for index, word in enumerate(argv):
        arguments.append(word)
        if "\0" in word:
            raise InputError(f"{short(word)}: must have no null character: remove it")
        if not word.startswith("--") or word in ("--help", "--"):
            continue
        flag, equals, value = word.partition("=")
        name = flag[2:].replace("-", "_")
        if name.startswith("no_") and hints.get(name[3:]) is bool:
            name = name[3:]
        if name not in hints:
            flags = ["--" + known.replace("_", "-") for known in hints]
            raise InputError(f"unknown flag {flag}: {did_you_mean(flag, flags, 'see --help')}")
        following = argv[index + 1 : index + 2]
        if not equals and following and not _is_flag(following[0]):
            value = following[0]
        elif not equals and name == "resume":
            arguments.append("")  # tyro has no flag with an optional value; empty stands for "find the run"
        words[name] = value

    errors = io.StringIO()
    # A wide screen keeps tyro from breaking its message inside a word. Help is for the screen that is there.
    wide = {} if {"-h", "--help"} & set(argv) else {"COLUMNS": "1000"}
    try:
        with _environment(wide), contextlib.redirect_stderr(errors):
            described = _in_plain_words(config_type)
            parsed: Any = tyro.cli(described, args=arguments, prog=f"python -m agents.{agent}")
    except SystemExit as stop:
        if not stop.code:
            raise
        for name, word in words.items():
            try:
                convert(word, hints[name], text=True)
            except ValueError as error:
                flag = f"--{name.replace('_', '-')}"
                if not word:
                    raise InputError(f"{flag}: a value is missing") from None
                raise InputError(f"{flag} {word}: {error}") from None
        raise InputError(_condensed(errors.getvalue())) from None
    given: dict[str, Any] = {}
    defaults = {field.name: field.default for field in dataclasses.fields(config_type)}
    for name in (*words, *positional(config_type)):
        value = getattr(parsed, name)
        if name in words or value != defaults[name]:  # an empty word is one too
            given[name] = value
    return given


@functools.cache
def positional(config_type: type) -> tuple[str, ...]:
    """The fields that are words without a flag: those whose type is marked `tyro.conf.Positional`."""
    hints = typing.get_type_hints(config_type, include_extras=True)
    return tuple(
        name for name in field_names(config_type) if typing.get_origin(hints[name]) is typing.Annotated
    )


@functools.cache
def _in_plain_words(config_type: type) -> type:
    """The configuration with plain words in its help and in messages about it.

    tyro writes `--model {None}|STR ... (default: None)`. Nobody types None: this says `--model STR`,
    and leaves the default to the flag's own sentence. A word without a flag has the name of its field.
    """
    from tyro.conf import arg

    hints = typing.get_type_hints(config_type, include_extras=True)
    changed: list[tuple[str, Any, Any]] = []
    for field in dataclasses.fields(config_type):
        hint = hints[field.name]
        if field.name in positional(config_type):
            name = field.name.upper()
            word = name if field.default is dataclasses.MISSING else f"[{name} ...]"
        elif field.default is None:
            word = _plain_type(hint)
        else:
            continue
        plain = arg(metavar=word, help_behavior_hint="")
        changed.append((field.name, typing.Annotated[hint, plain], dataclasses.field(default=field.default)))
    shown = dataclasses.make_dataclass(config_type.__name__, changed, bases=(config_type,), frozen=True)
    shown.__doc__ = config_type.__doc__
    return shown


def _plain_type(hint: Any) -> str:
    """What stands for the value of an optional flag: STR, INT, FLOAT, or the words it may be."""
    [value] = [each for each in typing.get_args(hint) if each is not type(None)]
    choices = typing.get_args(value)
    return "{" + ",".join(choices) + "}" if choices else str(value.__name__).upper()


def _is_flag(word: str) -> bool:
    return word.startswith("--") or word == "-h"


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> typing.Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _condensed(box: str) -> str:
    """The first paragraph below the title of a message that tyro framed, as one line."""
    # A frame and a rule hold no word; what characters draw them depends on the terminal.
    lines = [line.strip("│| ") for line in box.splitlines()]
    paragraphs: list[list[str]] = []
    for has_words, group in itertools.groupby(lines, _has_words):
        if has_words:
            paragraphs.append(list(group))
    if not paragraphs:
        return "the command line cannot be read: see --help"
    first = paragraphs[0]
    if re.match(r"[^\w\s]", first[0]):  # the title stands in the frame, and touches the paragraph
        first = first[1:]
    elif len(paragraphs) > 1:
        first = paragraphs[1]
    message = " ".join(first).rstrip(".").replace("Unrecognized options:", "unexpected")
    message = re.sub(r"^Missing from .*?: (\S+) (.*?)\.? \(required\)$", r"\1 is missing: \2", message)
    return f"{message}: see --help"


def _has_words(line: str) -> bool:
    return re.search(r"\w", line) is not None
