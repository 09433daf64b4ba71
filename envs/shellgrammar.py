"""The grammar of shell lines: which simple commands a line runs, refusing what bash cannot parse.

    parse("sort a.txt && while read x; do echo $x; done < b.txt")   `sort a.txt`, `read x` and `echo $x`

It knows pipelines, lists, groups, `if`, `while`, `until` and `for`. It refuses functions and most uses of
`case`, `((...))` and `[[ a && b ]]`.
"""

from __future__ import annotations

from collections.abc import Sequence

from envs.shellwords import DEEPEST, GRAMMAR, Command, ShellSyntaxError, Token, command_of, tokens


def parse(line: str) -> list[Command]:
    """The simple commands of a line in order, those of substitutions included; `for x in ...` is one too.

    Raises:
        ShellSyntaxError: the line is not shell, or uses a part of the grammar that is not read here.
    """
    return _Parser(tokens(line), depth=0).read()


class _Parser:
    """Reads the commands of some tokens by recursive descent; `at` is the place of the next token."""

    def __init__(self, found: Sequence[Token], depth: int):
        if depth > DEEPEST:
            raise ShellSyntaxError("nested too deeply")
        self.tokens = [token for token in found if token.kind not in ("comment", "here-document")]
        self.at, self.depth = 0, depth
        self.commands: list[Command] = []

    def read(self) -> list[Command]:
        self._list()
        if self.at < len(self.tokens):
            raise ShellSyntaxError(f"{self.tokens[self.at].text!r} is out of place")
        return self.commands

    def _list(self, *ends: str) -> None:
        """Pipelines with `;`, `&`, `&&`, `||` or line feeds between them, up to one of `ends`."""
        while True:
            self._line_feeds()
            self._pipeline()
            if self._take("&&", "||"):
                continue
            if not self._take(";", "&", "\n"):
                return
            self._line_feeds()
            if self.at == len(self.tokens) or self._next() in ends:
                return

    def _pipeline(self) -> None:
        while word := self._take("!", "time"):
            if word == "time":
                self._take("-p")
        self._command()
        while self._take("|", "|&"):
            self._line_feeds()
            self._command()

    def _command(self) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ShellSyntaxError("nested too deeply")
        if self._take("("):
            self._until(")")
        elif self._take("{"):
            self._until("}")
        elif self._take("if"):
            self._if()
        elif self._take("while", "until"):
            self._until("do")
            self._until("done")
        elif self._next() == "for":
            self._for()
        else:
            self._simple()
        self._add_inner(self._redirections())
        self.depth -= 1

    def _until(self, *ends: str) -> str:
        """A list, and the word that ends it."""
        self._list(*ends)
        end = self._take(*ends)
        if not end:
            raise ShellSyntaxError(f"{ends[-1]!r} is missing")
        return end

    def _if(self) -> None:
        end = "elif"
        while end == "elif":
            self._until("then")
            end = self._until("elif", "else", "fi")
        if end == "else":
            self._until("fi")

    def _for(self) -> None:
        words = [*self._words(2)]
        self._line_feeds()
        if self._take("in"):
            words += self._words()
        self._take(";")
        self._line_feeds()
        if len(words) < 2 or not self._take("do"):
            raise ShellSyntaxError("'do' is missing")
        self._add(words)
        self._until("done")

    def _simple(self) -> None:
        first = self._next()
        if not first or first in GRAMMAR or self.tokens[self.at].kind == "operator":
            raise ShellSyntaxError(f"{first!r} is out of place" if first else "a command is missing")
        found: list[Token] = []
        while self.at < len(self.tokens) and self.tokens[self.at].kind != "operator":
            found += self._redirections() or self._words(1)
        if self._next() == "(":
            raise ShellSyntaxError("'(' is out of place")
        self._add(found)

    def _words(self, most: int | None = None) -> list[Token]:
        """The next words, at most `most` of them."""
        start = self.at
        while self.at < len(self.tokens) and self.tokens[self.at].kind == "word":
            if self.at - start == most:
                break
            self.at += 1
        return self.tokens[start : self.at]

    def _redirections(self) -> list[Token]:
        """The next redirections, each with its target."""
        start = self.at
        while self.at < len(self.tokens) and self.tokens[self.at].kind == "redirection":
            self.at += 1
            if not self._words(1):
                raise ShellSyntaxError(f"{self.tokens[self.at - 1].text!r} has no target")
        return self.tokens[start : self.at]

    def _line_feeds(self) -> None:
        while self._take("\n"):
            pass

    def _next(self) -> str:
        """The next token as written; nothing at the end."""
        return self.tokens[self.at].text if self.at < len(self.tokens) else ""

    def _take(self, *texts: str) -> str:
        """The next token where it is one of these, and past it; else nothing."""
        text = self._next()
        if text not in texts:
            return ""
        self.at += 1
        return text

    def _add(self, found: Sequence[Token]) -> None:
        self.commands.append(command_of(found))
        self._add_inner(found)

    def _add_inner(self, found: Sequence[Token]) -> None:
        for token in found:
            for inner in token.inner:
                self.commands += _Parser(inner, self.depth + 1).read()
