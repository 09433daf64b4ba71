"""Do two network commands mean the same? Option grammars of the tools parse both; nothing is ever run.

`compare` brings the reference and the command into a canonical form: tool, options with their values,
targets. What the tools' manuals call the same is made equal: the order of options, joined and separate
values, long and short names, port lists, address ranges, defaults. Everything else counts as asked. An
option that only changes what is printed (`-v`, `-n`) makes another command, because a task either asks for
it or does not. Where a manual leaves room, two spellings are kept apart.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence

from envs.shellwords import FILTERS, Command, ShellSyntaxError, Token, command_of, tokens, tool_of
from envs.verify.network.curl import curl
from envs.verify.network.dig import dig
from envs.verify.network.nmap import nmap
from envs.verify.network.options import Fields
from envs.verify.network.small import grep, nc, ping, traceroute
from envs.verify.network.ss import ss
from envs.verify.network.values import NoMeaning
from envs.verify.verdict import Verdict

LONGEST_COMMAND = 10_000  # characters
TOOLS: dict[str, Callable[[Sequence[str]], Fields]] = {
    "nmap": nmap,
    "ping": ping,
    "dig": dig,
    "nc": nc,
    "ss": ss,
    "traceroute": traceroute,
    "curl": curl,
    "grep": grep,
}
REDIRECTIONS = {"<": "<", ">": ">", "1>": ">", ">|": ">", ">>": ">>", "1>>": ">>"}  # as written: as compared
Stage = tuple[str, Fields]  # one command of a pipeline: the tool, and what it asks for


def compare(reference: str, command: str) -> Verdict:
    """Whether `command` means what `reference` means. Pure; raises for no string.

    Returns: `correct`, `wrong` (`differed` says what), `invalid` (`reason` says why the command has no
    meaning), or `not_executed` where the reference itself cannot be parsed. Then not even the same text is
    right: a broken reference could only ever add successes.
    """
    try:
        wanted = parse(reference)
    except NoMeaning as error:
        return Verdict("not_executed", _one_line(f"the reference is outside the option grammar: {error}"))
    try:
        found = parse(_unmarked(command))
    except NoMeaning as error:
        return Verdict("invalid", _one_line(str(error)))
    if found == wanted:
        return Verdict("correct")
    return Verdict("wrong", "other meaning", _one_line(difference(wanted, found)))


def meaning(command: str) -> str:
    """What a command asks for, as a text that is equal for equal meanings; empty where it has none."""
    try:
        stages = parse(_unmarked(command))
    except NoMeaning:
        return ""
    return repr([(tool, sorted(fields.items())) for tool, fields in stages])


def _unmarked(command: str) -> str:
    """A command without the semicolon that may mark the end of its line."""
    return re.sub(r"\s*;\s*$", "", command)


def parse(line: str) -> list[Stage]:
    """The stages of a pipeline. Raises NoMeaning."""
    if len(line) > LONGEST_COMMAND:
        raise NoMeaning(f"longer than {LONGEST_COMMAND} characters")
    stages: list[Stage] = []
    for command in _pipeline(line.strip()):
        stages.append(_stage(command, first=not stages))
    return stages


def _stage(command: Command, first: bool) -> Stage:
    if command.assignments:
        raise NoMeaning("variable assignments are not part of the grammar")
    if command.name == "sudo":
        raise NoMeaning("sudo takes a command here, and no options")
    name, implied = tool_of(command.name)
    words = [word.value for word in command.words[1:]]
    files = {REDIRECTIONS[operator]: target.value for operator, target in command.redirections}
    if len(files) < len(command.redirections):
        raise NoMeaning("two redirections of one stream are not part of the grammar")
    if name in TOOLS and not (first and name == "grep"):
        return name, {**TOOLS[name]([implied, *words] if implied else words), **files}
    if not first and name in FILTERS:
        return name, {"words": " ".join(map(repr, words)), **files}
    raise NoMeaning(f"unknown {'tool' if first else 'filter'} {name!r}")


def _pipeline(line: str) -> list[Command]:
    """The commands of a pipeline. Raises NoMeaning for what is more than words, files and pipes."""
    try:
        rest = list(tokens(line))
    except ShellSyntaxError as error:
        raise NoMeaning(str(error)) from None
    stages: list[list[Token]] = [[]]
    while rest:
        token = rest.pop(0)
        if token.kind == "word":
            _check_word(token)
            stages[-1].append(token)
        elif token.text in ("2>", "2>>") and rest and rest[0].text == "/dev/null":
            rest.pop(0)
        elif token.text in REDIRECTIONS:
            if not (rest and rest[0].kind == "word"):
                raise NoMeaning(f"{token.text!r} has no file")
            stages[-1].append(token)
        elif token.text == "|":
            stages.append([])
        elif token.kind != "comment":
            shown = "a second line" if token.text == "\n" else repr(token.text)
            raise NoMeaning(f"{shown} is not part of the grammar")
    if not all(stages):
        raise NoMeaning("empty" if len(stages) == 1 else "nothing on one side of a pipe")
    return [command_of(stage) for stage in stages]


def _check_word(word: Token) -> None:
    if word.expands:
        raise NoMeaning("expansion with $ or backticks is not part of the grammar")
    if re.search(r"\{[^{}]*(,|\.\.)[^{}]*\}", word.bare):
        raise NoMeaning("brace expansion is not part of the grammar")


def difference(wanted: Sequence[Stage], found: Sequence[Stage]) -> str:
    """What differs between two parsed commands, in words."""
    parts: list[str] = []
    for place, (asked, got) in enumerate(itertools.zip_longest(wanted, found)):
        if asked is None:
            parts.append(f"| {got[0]} is extra")
        elif got is None:
            parts.append(f"| {asked[0]} is missing")
        elif asked[0] != got[0]:
            parts.append(f"tool: {got[0]} instead of {asked[0]}")
        else:
            before = f"{asked[0]} " if place else ""
            parts += [before + part for part in _fields_differ(asked[1], got[1])]
    return "; ".join(parts)


def _fields_differ(asked: Fields, got: Fields) -> list[str]:
    parts = []
    for name in dict.fromkeys([*asked, *got]):
        if name not in got:
            parts.append(f"{name} {asked[name]}".rstrip() + " is missing")
        elif name not in asked:
            parts.append(f"{name} {got[name]}".rstrip() + " is extra")
        elif asked[name] != got[name]:
            parts.append(f"{name}: {got[name] or 'no value'} instead of {asked[name] or 'no value'}")
    return parts


def _one_line(text: str, most: int = 240) -> str:
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= most else f"{text[: most - 3]}..."
