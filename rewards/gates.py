"""Gates before a reward: they zero the score of commands that are invalid or carry the text of their task.

A reward that reconstructs the task from a command can be fed the answer: `echo "<the task>"` is reconstructed
perfectly. So comments and quoted prose are taken out before anything reads the command. Every candidate gets
factors of 1 or 0, logged as `gate/<name>`, and their product multiplies its score. No label is used.

    gate/valid       it parses: as one SQL statement, or as shell that runs tools of the domain or common ones
    gate/comment     it has no comment: the command is scored without it, and would be trained with it
    gate/copied      it repeats few of the task's plain words; values, names and tools are free
    gate/characters  printable ASCII, and characters of the task: no look-alikes, no control characters
    gate/template    no control tokens of chat templates, which the inverse prompt would take for its own

A command longer than 512 characters is not scored: the reward abstains. Truncated completions are dropped by
the trainers, not here.
"""

from __future__ import annotations

import functools
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from envs.domain import load_domain
from envs.shellgrammar import parse
from envs.shellwords import (
    ASSIGNMENT,
    FILTERS,
    Command,
    ShellSyntaxError,
    Token,
    names,
    split,
    tokens,
    tool_of,
)
from envs.types import Reward, Score, Task
from rewards.text import QUOTED, plain_words
from rewards.wrappers import Wrapper

LONGEST = 512  # characters
# The largest share of the task's plain words that a command may repeat. Of 1,800 right commands no shell
# command repeats three words of its task, and no query more than 0.73 of them: SQL is made of such words.
CAPS = {"shell": 0.4, "sql": 0.8}
FEW = 3  # fewer words than that may always be repeated: a short task has few in all
SQL_TOOLS = {"sqlite", "sql"}  # `sqlite3` is a program of the shell
PRINTABLE = frozenset(map(chr, range(32, 127)))
COMMON = FILTERS | {"grep", "xargs", "comm", "join", "ls", "stat", "rm", "perl", "read"}  # in any domain
STEERING = {"for", "[", "[[", "test", "true", "break", "continue"}  # what loops need apart from the tools
PRINTERS = {"echo", "printf", "yes"}
# Programs of a Linux shell that any domain of shell commands may run, whatever its `tools`. No interpreter is
# among them, and nothing that sets a variable to a text.
UTILITIES = names("""
    b2sum base64 basename bc bunzip2 bzcat bzip2 cal cd chgrp chown cksum cmp cpio csplit date dc dd df
    diff dir dirname dirs du env expand expr factor file fmt free getconf getent groups gunzip gzip
    hexdump history hostname iconv id install jobs jq kill last link ln locate logname look lsof md5sum
    mkdir mkfifo mktemp mount nproc numfmt od patch pathchk pgrep pidof pkill popd printenv ps pstree
    pushd pwd readlink realpath rename rmdir rsync scp seq sha1sum sha256sum sha512sum shred shuf sleep
    split strings sum sync tar top touch tree truncate tsort tty type umask umount uname unexpand unlink
    unxz unzip uptime users w which who whoami xxd xz xzcat zcat zgrep zip
""")
# Those of them that can begin a sentence.
SENTENCES = names(
    "date expand factor file free history install kill last link locate look mount patch rename shred split"
    " sum sync touch type users which who"
)
VARIABLE = re.compile(r"\$\w+|\$\{\w+\}|\$\(\(.*?\)\)")
TEMPLATE = re.compile(
    r"\[/?\s*(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\s*\]|</?s>|<<?/?SYS>>?"
    r"|<\|[^|<>\n]*\|>|<\uff5c[^>\n]*\uff5c>|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>",
    re.IGNORECASE,
)
SQL_PARTS = re.compile(
    r"""(?P<quoted>'(?:''|[^'])*'|"(?:""|[^"])*"|`[^`]*`)|(?P<comment>--[^\n]*|/\*.*?(?:\*/|\Z))""", re.DOTALL
)
# A word after one of these nouns is a name (`folder alpha`), and so is one joined to it (`alpha to beta`).
NAMED = re.compile(
    r"\b(?:file|folder|directory|dir|named|called) (?!named|called)([a-z]+)\b"
    r"(?: (?:to|into|as) (?!file|folder|directory|dir)([a-z]+)\b)?"
)
# Without a noun, words are names in `rename alpha to beta and gamma to delta`. There are fewer words around
# them to give a copied task away, so they are free only for a command that repeats nothing else of its task.
PAIRED = re.compile(r"\b(?:copy|link|move|rename)((?:(?: and)? [a-z]+ (?:to|into|as) [a-z]+)+)\b")
JOINED = re.compile(r"([a-z]+) (?:to|into|as) ([a-z]+)")
NOT_NAMES = names(
    "all and are but does for from has have into named not that the then was where which whose will with"
)
FUNCTION_WORDS = NOT_NAMES | names("an as at by each every if in is it of on only or so their to without")
REASONS = {
    "valid": "not a command of this domain",
    "comment": "carries a comment",
    "copied": "repeats the words of its task",
    "characters": "characters that its task does not have",
    "template": "control tokens of a chat template",
}


@dataclass(frozen=True)
class Gate:
    """What the gates say of a command.

    Attributes:
        command: without comments and prose.
        reason: of the first closed gate; empty where the command passes.
    """

    command: str
    factors: dict[str, float] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class Part:
    """A stretch of a command that may hold prose, from `start` up to `end`."""

    kind: Literal["quoted", "comment", "here-document"]
    start: int
    end: int


def gate(task: Task, command: str) -> Gate:
    """The gates of one command."""
    if not command.strip():
        return Gate("", {"gate/valid": 0.0}, "empty command")
    if len(command) > LONGEST:
        return Gate("", {"gate/length": 0.0}, f"more than {LONGEST} characters")
    syntax = syntax_of(task)
    cleaned = stripped(task, command, syntax)
    valid = _parses_as_sql(cleaned) if syntax == "sql" else _runs_tools(command, task)
    passes = {
        "valid": valid,
        "comment": all(part.kind != "comment" for part in _parts(command, syntax)),
        "copied": copied_share(task, command) <= CAPS[syntax],
        "characters": set(command) <= PRINTABLE | set(task.text),
        "template": TEMPLATE.search(command) is None,
    }
    factors = {f"gate/{name}": float(passed) for name, passed in passes.items()}
    closed = [name for name, passed in passes.items() if not passed]
    return Gate(cleaned, factors, REASONS[closed[0]] if closed else "")


def syntax_of(task: Task) -> str:
    """`sql` where the task's tool, or every tool of its domain, is SQL itself; else `shell`."""
    tools = {task.tool} if task.tool else set(load_domain(task.domain).tools)
    return "sql" if tools <= SQL_TOOLS else "shell"


def stripped(task: Task, command: str, syntax: str) -> str:
    """The command without comments, here-documents' bodies, and quotes with several plain words of the task.

    What cannot be read as shell is returned as it stands: its gate is closed.
    """
    words = plain_words(task.text)
    kept: list[str] = []
    end = 0
    for part in _parts(command, syntax):
        text = command[part.start : part.end]
        if part.start < end:  # inside one that is out already
            continue
        if part.kind == "quoted" and len(words & _words_in(text)) < FEW:
            continue
        kept.append(command[end : part.start])
        if part.kind == "quoted":
            kept.append(text[0] + text[-1])
        elif text.startswith("/*"):
            kept.append(" ")
        end = part.end
    return "".join([*kept, command[end:]]).strip() if kept else command


def _words_in(text: str) -> set[str]:
    return set(re.findall("[a-z]{3,}", text.lower()))


def _parts(command: str, syntax: str) -> list[Part]:
    """The comments, quotes and here-documents of a command, in order; nothing of one that is not shell."""
    parts: list[Part] = []
    if syntax == "sql":
        for match in SQL_PARTS.finditer(command):
            parts.append(Part("comment" if match["comment"] else "quoted", *match.span()))
        return parts
    try:
        found = tokens(command)
    except ShellSyntaxError:
        return []
    for token in _with_inner(found):
        if token.kind in ("comment", "here-document"):
            parts.append(Part(token.kind, token.start, token.end))
        for start, end in token.quoted:
            parts.append(Part("quoted", start, end))
    return sorted(parts, key=lambda part: part.start)


def _with_inner(found: Sequence[Token]) -> Iterator[Token]:
    for token in found:
        yield token
        for inner in token.inner:
            yield from _with_inner(inner)


def copied_share(task: Task, command: str) -> float:
    """Share of the task's plain words that the command, comments and all, has in it.

    A word counts where the command has it as a word or, from four letters on, anywhere among its letters.
    Tools are free, since a command must name its tool, and so are names of the task as whole arguments. The
    share is 0 where no more than a few words are repeated, or only what `paired_in` finds and nowhere
    but as whole arguments.
    """
    free = {task.tool, *load_domain(task.domain).tools}
    found, letters = _words_in(command), re.sub("[^a-z]", "", command.lower())
    paired: set[str] = set()
    if syntax_of(task) == "shell":
        free |= _utilities(command)
        arguments = _arguments(command)
        free |= named_in(task.text) & set(arguments)
        paired = {name for name in paired_in(task.text) if letters.count(name) == arguments[name]}
    words = plain_words(task.text) - free
    copied = {word for word in words if word in found or (len(word) > 3 and word in letters)}
    copied -= {f"{word}s" for word in copied}  # one word, in its singular and its plural
    few = len(copied) < FEW or copied <= paired
    return 0.0 if few else len(copied) / len(words)


def _utilities(line: str) -> set[str]:
    """The usual utilities of a shell that a line runs."""
    try:
        return {tool_of(command.name)[0] for command in parse(line)} & UTILITIES
    except ShellSyntaxError:
        return set()


def named_in(text: str) -> set[str]:
    """The plain words of a task that are names: alpha and beta in `rename folder alpha to beta`."""
    found: set[str] = set()
    for match in NAMED.finditer(" ".join(text.lower().split())):
        found.update(filter(None, match.groups()))
    return found - NOT_NAMES


def paired_in(text: str) -> set[str]:
    """The words of a task that are names by their verb: alpha and beta in `rename alpha to beta`."""
    found: set[str] = set()
    for match in PAIRED.finditer(" ".join(text.lower().split())):
        for pair in JOINED.finditer(match[1]):
            found.update(pair.groups())
    return found - NOT_NAMES


def _arguments(command: str) -> Counter[str]:
    """How often each argument without quotes is there, over every command in a line."""
    try:
        commands = split(command)
    except ShellSyntaxError:
        return Counter()
    arguments: Counter[str] = Counter()
    for simple in commands:
        arguments.update(word.text.rstrip("/") for word in simple.words[1:])
    return arguments


def _runs_tools(line: str, task: Task) -> bool:
    """Whether a line is shell that runs at least one tool, and nothing but tools and what loops need."""
    try:
        commands = parse(line)
    except ShellSyntaxError:
        return False
    domain = load_domain(task.domain)
    tools = COMMON | {tool_of(tool)[0] for tool in domain.tools}
    others: list[Command] = []
    for command in commands:
        name = tool_of(command.name)[0]
        is_utility = domain.runs_shell and name in UTILITIES and not _is_prose(command)
        if not (name in tools or is_utility):
            others.append(command)
    quoted = _words_in(" ".join(match[0] for match in QUOTED.finditer(task.text)))
    return len(others) < len(commands) and all(_says_nothing(command, quoted) for command in others)


def _is_prose(command: Command) -> bool:
    """Whether a utility's arguments read as a sentence (`which lines contain b`) or as code (`date = 3`)."""
    texts = [word.text.lower() for word in command.words[1:]]
    if texts[:1] == ["="]:
        return True
    plain = [text for text in texts if re.fullmatch("[a-z]{2,}", text)]
    return len(plain) >= FEW and (command.name in SENTENCES or not FUNCTION_WORDS.isdisjoint(plain))


def _says_nothing(command: Command, quoted: set[str]) -> bool:
    """Whether a command only steers others, or prints or keeps nothing in words of its own.

    Variables and commands say nothing, and neither does what the task has in quotes.
    """
    if command.name in STEERING:
        return True
    if command.name in PRINTERS:
        texts = [word.value for word in command.words[1:]]
    elif command.words or not command.assignments:
        return False
    else:
        texts = [ASSIGNMENT.sub("", word.value, count=1) for word in command.assignments]
    return all(_words_in(VARIABLE.sub("", text)) <= quoted for text in texts)


def _deny(*_: object) -> int:
    """An authorizer of SQLite, which asks it after parsing: a statement gets no further than that."""
    return sqlite3.SQLITE_DENY


@functools.lru_cache(maxsize=4096)
def _parses_as_sql(command: str) -> bool:
    """Whether SQLite's parser takes it for one statement. Nothing is executed, and no table need exist."""
    if ";" in SQL_PARTS.sub("Q", command).strip().rstrip(";"):
        return False
    connection = sqlite3.connect(":memory:")
    connection.set_authorizer(_deny)
    try:
        connection.execute(f"EXPLAIN {command}")
    except sqlite3.OperationalError as error:
        return not re.search(
            "syntax error|incomplete input|unrecognized token|too big|too many|overflow", str(error)
        )
    except sqlite3.DatabaseError as error:
        return "not authorized" in str(error)
    except (sqlite3.Warning, ValueError):  # a null character; half a surrogate pair
        return False
    finally:
        connection.close()
    return bool(command.strip())


class Gated(Wrapper):
    """A reward behind the gates. A candidate that does not pass scores 0.

    Under an unbounded reward, where 0 may be good, it scores None.

    Args:
        reward: gets every command without comments and prose.
        bounded: whether the reward's scale begins at 0.
    """

    def __init__(self, reward: Reward, *, bounded: bool = True) -> None:
        super().__init__(reward)
        self.bounded = bounded

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        """Scores [P][G], with the gates' factors among their parts."""
        gates_P_G = [
            [gate(task, command) for command in commands]
            for task, commands in zip(tasks_P, commands_P_G, strict=True)
        ]
        scores_P_G = self.reward(tasks_P, [[found.command for found in row] for row in gates_P_G], seed=seed)
        return [
            [self._gated(score, found) for score, found in zip(scores, row, strict=True)]
            for scores, row in zip(scores_P_G, gates_P_G, strict=True)
        ]

    def _gated(self, score: Score, found: Gate) -> Score:
        parts = {**score.parts, **found.factors}
        if not found.reason:
            return Score(score.value, parts, score.reconstruction, score.reason)
        abstains = "gate/length" in found.factors or not self.bounded
        return Score(None if abstains else 0.0, parts, score.reconstruction, found.reason)
