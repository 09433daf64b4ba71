"""The one reader of shell lines: what is a word, a quote, a comment, an operator, and where a command begins.

    tokens("sort a.txt | head -n 3 # top")   words, operators, redirections and comments, with their places
    split("sudo sort a.txt | head -n 3")     one `Command` for each part between operators

Nothing is expanded and nothing is run. What stands before a command's name is not part of the command:
`sudo`, assignments, and words such as `do` or `time`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

DEEPEST = 20  # substitutions, or compound commands, inside one another
BLANK = " \t"
METACHARACTERS = " \t\n|&;()<>"  # what ends a word
REDIRECTION = re.compile(r"\d*(?:<<<|<<-?|<>|<&|<(?!\()|>>|>&|>\||>(?!\())|&>>?")
OPERATOR = re.compile(r"&&|\|\||\|&|;[;&]|[|&;()\n]")
ARITHMETIC = re.compile(r"\$\(\((?:[^()]|\([^()]*\))*\)\)")
EXPANSION = re.compile(r"\$[\w{(?!@*#$-]")
SINGLE_QUOTED = re.compile(r"'([^']*)'")
ANSI_QUOTED = re.compile(r"'((?:\\.|[^'\\])*)'", re.DOTALL)  # after a `$`
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*\+?=")


def names(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


GRAMMAR = names("! { } if then elif else fi while until do done time")

# Tools that may follow a pipe in any domain.
FILTERS = names(
    "awk cat column cut fold gawk head less mawk more nl paste rev sed sort tac tail tee tr uniq wc"
)
# Other names of a tool, and the option that such a name stands for.
ALIASES = {
    "nc.openbsd": ("nc", ""),
    "netcat": ("nc", ""),
    "ping4": ("ping", "-4"),
    "ping6": ("ping", "-6"),
    "traceroute4": ("traceroute", "-4"),
    "traceroute6": ("traceroute", "-6"),
    "egrep": ("grep", "-E"),
    "fgrep": ("grep", "-F"),
}


class ShellSyntaxError(ValueError):
    """The line cannot be read as shell; the message says why."""


@dataclass(frozen=True)
class Token:
    """A part of a line.

    Attributes:
        text: as written.
        start: its place in the line.
        value: of a word, its text without quotes and backslashes, and without commands inside it (`$(...)`).
        bare: `value` with a NUL for each quoted character.
        quoted: (start, end) of each quoted part in the line, quotes included.
        inner: the tokens of each command inside the word: `$(...)`, backticks, `<(...)`, `>(...)`.
        expands: whether the shell would put something else in place of a part of it (not `*` or `{a,b}`).
    """

    kind: Literal["word", "operator", "redirection", "comment", "here-document"]
    text: str
    start: int
    value: str = ""
    bare: str = ""
    quoted: tuple[tuple[int, int], ...] = ()
    inner: tuple[tuple[Token, ...], ...] = ()
    expands: bool = False

    @property
    def end(self) -> int:
        """The place after its last character."""
        return self.start + len(self.text)


@dataclass(frozen=True)
class Command:
    """One simple command.

    Attributes:
        words: its name and arguments; none where it only assigns or redirects.
        redirections: pairs of an operator and its target.
    """

    words: tuple[Token, ...] = ()
    assignments: tuple[Token, ...] = ()
    redirections: tuple[tuple[str, Token], ...] = ()

    @property
    def name(self) -> str:
        """Its first word."""
        return self.words[0].value if self.words else ""


def tokens(line: str) -> tuple[Token, ...]:
    """The tokens of a line or of several; a line feed is an operator.

    Raises:
        ShellSyntaxError: a quote or a substitution is not closed, or the line ends in a backslash.
    """
    return _Reader(line).tokens()


def split(line: str) -> list[Command]:
    """The commands between the operators of a line, those of substitutions included.

    The grammar is not checked: `for x in ...` counts as a command. Raises ShellSyntaxError where `tokens`
    does.
    """
    return _split(tokens(line))


def without_sudo(line: str) -> str:
    """A line without the `sudo` that it begins with, and without white space around it."""
    line = line.strip()
    if not line.startswith("sudo"):
        return line
    try:
        found = tokens(line)
    except ShellSyntaxError:
        return line
    return line[found[1].start :] if _is_sudo(found) else line


def tool_of(word: str) -> tuple[str, str]:
    """A command's name without its path and by its usual name, and the option that an alias stands for."""
    name = word.rsplit("/", 1)[1] if re.fullmatch(r"(/[\w.-]+)+", word) else word
    return ALIASES.get(name, (name, ""))


# Tokens


@dataclass
class _Word:
    """A word while it is read."""

    value: list[str] = field(default_factory=list)
    bare: list[str] = field(default_factory=list)
    quoted: list[tuple[int, int]] = field(default_factory=list)
    inner: list[tuple[Token, ...]] = field(default_factory=list)
    expands: bool = False

    def add(self, text: str, quoted: bool) -> None:
        self.value.append(text)
        self.bare.append("\0" * len(text) if quoted else text)


class _Reader:
    """Reads a line from left to right; `at` is the place of the next character."""

    def __init__(self, line: str):
        self.line, self.at = line, 0
        self.depth = 0
        self.word = _Word()

    def tokens(self, close: str = "") -> tuple[Token, ...]:
        """Tokens up to the end, or up to the `close` that ends a substitution, which is passed over."""
        found: list[Token] = []
        documents: list[tuple[str, bool]] = []  # their ends, and whether tabs may stand before these
        parentheses = 0
        while self.at < len(self.line):
            char = self.line[self.at]
            if char == close and (char == "`" or not parentheses):
                self.at += 1
                return tuple(found)
            if char in BLANK:
                self.at += 1
            elif self.line.startswith("\\\n", self.at):
                self.at += 2
            elif char == "\n" and documents:
                found.append(self._here_documents(documents))
                documents = []
            else:
                token = self._token(close)
                if found and found[-1].text.endswith(("<<", "<<-")) and found[-1].kind == "redirection":
                    documents.append((token.value, found[-1].text.endswith("-")))
                parentheses += {"(": 1, ")": -1}.get(token.text, 0)
                found.append(token)
        if close:
            raise ShellSyntaxError("a substitution is not closed")
        return tuple(found)

    def _token(self, close: str) -> Token:
        start = self.at
        if self.line[start] == "#":
            end = self.line.find("\n", start)
            self.at = end if end >= 0 else len(self.line)
            return Token("comment", self.line[start : self.at], start)
        if match := REDIRECTION.match(self.line, start):
            self.at = match.end()
            return Token("redirection", match[0], start)
        if match := OPERATOR.match(self.line, start):
            self.at = match.end()
            return Token("operator", match[0], start)
        return self._word(close)

    def _here_documents(self, ends: Sequence[tuple[str, bool]]) -> Token:
        """The lines from this line feed on up to the ends of the here-documents, one after the other."""
        start = self.at
        for end, indented in ends:
            while self.at < len(self.line):
                line = self.line[self.at + 1 :].partition("\n")[0]
                self.at += 1 + len(line)
                if (line.lstrip("\t") if indented else line) == end:
                    break
        return Token("here-document", self.line[start : self.at], start)

    def _word(self, close: str) -> Token:
        start, outer = self.at, self.word
        self.word = word = _Word()
        if self.line[start] in "<>":  # <(...): a file that holds what a command writes
            self.at += 2
            self._substitution(")")
        while self.at < len(self.line):
            char = self.line[self.at]
            if char in METACHARACTERS or char == close == "`":
                break
            self._part(char)
        self.word = outer
        text = self.line[start : self.at]
        value, bare = "".join(word.value), "".join(word.bare)
        return Token("word", text, start, value, bare, tuple(word.quoted), tuple(word.inner), word.expands)

    def _part(self, char: str) -> None:
        """One character of a word, or one quoted or substituted part."""
        dollar = self.line.startswith(("$'", '$"'), self.at)
        if dollar:
            self.at += 1
            char = self.line[self.at]
            self.word.expands = True
        if char == "\\":
            self._escaped()
        elif char == "'":
            self._single_quoted(ANSI_QUOTED if dollar else SINGLE_QUOTED)
        elif char == '"':
            self._double_quoted()
        else:
            self._plain(char, quoted=False)

    def _plain(self, char: str, quoted: bool) -> None:
        """One character, or a part that begins with `$` or a backtick."""
        start = self.at
        if char == "`":
            self.at += 1
            self._substitution("`")
        elif match := ARITHMETIC.match(self.line, start):
            self.at = match.end()
            self.word.add(match[0], quoted)
            self.word.expands = True
        elif self.line.startswith("$(", start):
            self.at += 2
            self._substitution(")")
        elif self.line.startswith("${", start):
            self.at += 2
            self.word.add("${", quoted)
            self._up_to("}", quoted)
            self.word.add("}", quoted)
            self.word.expands = True
        else:
            self.at += 1
            self.word.add(char, quoted)
            self.word.expands |= EXPANSION.match(self.line, start) is not None

    def _up_to(self, close: str, quoted: bool) -> None:
        """The inside of double quotes or of `${...}`, and what closes it."""
        self._deeper()
        while self.at < len(self.line):
            char, after = self.line[self.at], self.line[self.at + 1 : self.at + 2]
            if char == close:
                self.at += 1
                self.depth -= 1
                return
            if char == "\\" and (not quoted or (after and after in '$`"\\\n')):
                self._escaped()
            elif char in "'\"" and not quoted:
                self._part(char)
            else:
                self._plain(char, quoted)
        raise ShellSyntaxError("a quote is not closed" if close == '"' else "${ is not closed")

    def _escaped(self) -> None:
        if self.at + 1 == len(self.line):
            raise ShellSyntaxError("ends in a backslash")
        char = self.line[self.at + 1]
        self.at += 2
        if char != "\n":
            self.word.add(char, quoted=True)

    def _single_quoted(self, form: re.Pattern[str]) -> None:
        inside = form.match(self.line, self.at)
        if not inside:
            raise ShellSyntaxError("a quote is not closed")
        self.at = inside.end()
        self.word.add(inside[1], quoted=True)
        self.word.quoted.append(inside.span())

    def _double_quoted(self) -> None:
        start = self.at
        self.at += 1
        self._up_to('"', quoted=True)
        self.word.quoted.append((start, self.at))

    def _substitution(self, close: str) -> None:
        """The commands of a substitution, whose opening is passed, and what closes it."""
        self._deeper()
        self.word.inner.append(self.tokens(close))
        self.word.expands = True
        self.depth -= 1

    def _deeper(self) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ShellSyntaxError("nested too deeply")


# Commands


def command_of(found: Sequence[Token]) -> Command:
    """A simple command from its words and redirections, without what stands before its name."""
    words: list[Token] = []
    redirections: list[tuple[str, Token]] = []
    operator = ""
    for token in found:
        if token.kind == "redirection":
            operator = token.text
        elif operator:
            redirections.append((operator, token))
            operator = ""
        else:
            words.append(token)
    assignments: list[Token] = []
    while words:
        if ASSIGNMENT.match(words[0].bare):
            assignments.append(words.pop(0))
        elif _is_sudo(words):
            words.pop(0)
        else:
            break
    return Command(tuple(words), tuple(assignments), tuple(redirections))


def _is_sudo(found: Sequence[Token]) -> bool:
    """Whether `sudo` comes first, without options, and a word after it."""
    if len(found) < 2 or found[0].value != "sudo":
        return False
    return found[1].kind == "word" and not found[1].value.startswith("-")


def _split(found: Sequence[Token]) -> list[Command]:
    """Commands between operators, each followed by those inside it."""
    commands: list[Command] = []
    group: list[Token] = []
    for token in (*found, Token("operator", "", 0)):
        if token.kind in ("word", "redirection"):
            group.append(token)
        elif token.kind == "operator":
            while group and group[0].text in (*GRAMMAR, "-p"):  # `time -p`
                group.pop(0)
            if group:
                commands.append(command_of(group))
            for word in group:
                for inner in word.inner:
                    commands += _split(inner)
            group = []
    return commands
