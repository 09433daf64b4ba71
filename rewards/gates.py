"""Gates before a reward: a command that smuggles its task past the inverter, or that is none, scores nothing. No label is used.

A reward that reads commands back can be fed the answer: `echo "<the task>"` reads back perfectly. So comments and quoted prose are
taken out before anything reads the command, and every candidate gets factors of 1 or 0, logged as `gate/<name>`, whose product
multiplies its score:

    gate/valid       it parses as one SQL statement, or as words of a shell, each stage with a tool of the domain or a common filter
    gate/copied      it repeats no more of the task's plain words than right commands do (values such as hosts and numbers are free)
    gate/characters  printable ASCII alone, but for characters that the task itself has: no look-alikes, no control characters
    gate/template    no control tokens of chat templates, which the inverse prompt would take for its own

A command of more than 512 characters abstains; one that the token limit cut cannot be told from its text, and trainers leave it out.
"""

from __future__ import annotations

import functools
import re
import shlex
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from envs.domain import load_domain
from envs.types import Reward, Score, Task
from rewards.text import plain_words
from rewards.wrappers import Wrapper

LONGEST = 512  # characters
# The largest share of the task's plain words that may come again. Of 1,800 right commands of the three domains no shell command repeats
# three words of its task, and no query more than 0.73 of them: SQL is made of such words ("orders", "where", "total").
CAPS = {"shell": 0.4, "sql": 0.8}
FEW = 3  # fewer words than that may always be repeated: a short task has few in all
SQL_TOOLS = {"sqlite", "sql"}  # `sqlite3` is a program of the shell
PRINTABLE = frozenset(map(chr, range(32, 127)))
FILTERS = frozenset(
    "head tail sort uniq wc grep egrep fgrep cut awk sed cat xargs tee tr nl rev tac column paste comm join".split()  # noqa: SIM905
)
TEMPLATE = re.compile(
    r"\[/?\s*(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\s*\]|</?s>|<<?/?SYS>>?|<\|[^|<>\n]*\|>|<\uff5c[^>\n]*\uff5c>"
    r"|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>",
    re.IGNORECASE,
)
SHELL_PARTS = re.compile(
    r"""(?P<quoted>'[^']*'|"(?:\\.|[^"\\])*")|(?P<escaped>\\.)|(?P<comment>(?<![^\s;&|()])\#[^\n]*)""",
    re.DOTALL,
)
SQL_PARTS = re.compile(
    r"""(?P<quoted>'(?:''|[^'])*'|"(?:""|[^"])*"|`[^`]*`)|(?P<comment>--[^\n]*|/\*.*?(?:\*/|\Z))""", re.DOTALL
)
HERE_DOCUMENT = re.compile(
    r"(?<!<)(<<-?\s*(['\"]?)(\w+)\2(?!<)[^\n]*)\n.*?(?:\n\s*\3[ \t]*(?=\n|\Z)|\Z)", re.DOTALL
)
REASONS = {
    "valid": "not a command of this domain",
    "copied": "repeats the words of its task",
    "characters": "characters that its task does not have",
    "template": "control tokens of a chat template",
}


@dataclass(frozen=True)
class Gate:
    """What a command has to pass. `command`: without comments and prose. `reason`: of the first closed gate; empty where it passes."""

    command: str
    factors: dict[str, float] = field(default_factory=dict)
    reason: str = ""


def gate(task: Task, command: str) -> Gate:
    """The gates of one command."""
    if not command.strip():
        return Gate("", {"gate/valid": 0.0}, "empty command")
    if len(command) > LONGEST:
        return Gate("", {"gate/length": 0.0}, f"more than {LONGEST} characters")
    syntax = syntax_of(task)
    cleaned = stripped(task, command, syntax)
    passes = {
        "valid": _parses_as_sql(cleaned)
        if syntax == "sql"
        else _parses_as_shell(cleaned, load_domain(task.domain).tools),
        "copied": copied_share(task, command) <= CAPS[syntax],
        "characters": set(command) <= PRINTABLE | set(task.text),
        "template": TEMPLATE.search(command) is None,
    }
    reason = next((REASONS[name] for name, passed in passes.items() if not passed), "")
    return Gate(cleaned, {f"gate/{name}": float(passed) for name, passed in passes.items()}, reason)


def syntax_of(task: Task) -> str:
    """`sql` where the task's tool, or every tool of its domain, is SQL itself; else `shell`."""
    tools = {task.tool} if task.tool else set(load_domain(task.domain).tools)
    return "sql" if tools <= SQL_TOOLS else "shell"


def stripped(task: Task, command: str, syntax: str) -> str:
    """The command without comments, here-documents' bodies, and what is in quotes with several plain words of the task."""
    words = plain_words(task.text)

    def replaced(match: re.Match[str]) -> str:
        part = match[0]
        if match.lastgroup == "comment":
            return " " if part.startswith("/*") else ""
        prose = match.lastgroup == "quoted" and len(words & set(re.findall("[a-z]{3,}", part.lower()))) >= FEW
        return part[0] + part[-1] if prose else part

    parts = SQL_PARTS if syntax == "sql" else SHELL_PARTS
    body = command if syntax == "sql" else HERE_DOCUMENT.sub(r"\1", command)
    cleaned = parts.sub(replaced, body)
    return command if cleaned == command else cleaned.strip()


def copied_share(task: Task, command: str) -> float:
    """Share of the task's plain words that the command, comments and all, has in it: as words, or from four letters on anywhere.

    0 where there are no more than a few such words. The tools' names do not count, since a command must name its tool.
    """
    words = plain_words(task.text) - {task.tool, *load_domain(task.domain).tools}
    found, letters = set(re.findall("[a-z]{3,}", command.lower())), re.sub("[^a-z]", "", command.lower())
    copied = [word for word in words if word in found or (len(word) > 3 and word in letters)]
    return len(copied) / len(words) if len(copied) >= FEW else 0.0


def _parses_as_shell(command: str, tools: Sequence[str]) -> bool:
    try:
        stages = list(_stages(command))
    except ValueError:  # a quote that is not closed
        return False
    allowed = FILTERS | set(tools)
    return bool(stages) and all(stage and PurePosixPath(stage).name in allowed for stage in stages)


def _stages(command: str) -> Iterator[str]:
    """The first word of every stage of a command line, empty where a stage is missing."""
    plain = SHELL_PARTS.sub("Q", command)  # so that what is left of `|`, `;` and the like ends a stage
    lexer = shlex.shlex(plain, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split, lexer.commenters = True, ""
    first, last, redirected = "", "", False
    for token in lexer:
        if set(token) <= set("|&;()"):
            if first or not (token.startswith("(") or last.endswith(")")):
                yield first
            first, last = "", token
        elif set(token) <= set("<>&|"):
            redirected = True
        elif redirected:
            redirected = False  # the file
        elif not first and not last.endswith(")"):  # what follows `$(...)` belongs to the stage around it
            first = token
    if first or not last.endswith((";", "&", ")")):
        yield first


@functools.lru_cache(maxsize=4096)
def _parses_as_sql(command: str) -> bool:
    """Whether SQLite's parser takes it for one statement. Nothing is executed, and no table need exist."""
    if ";" in SQL_PARTS.sub("Q", command).strip().rstrip(";"):
        return False
    connection = sqlite3.connect(":memory:")
    connection.set_authorizer(
        lambda *_: sqlite3.SQLITE_DENY
    )  # asked after parsing: a statement gets no further than that
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
    """A reward behind the gates. A candidate that does not pass has the value 0; under an unbounded reward, where 0 may be good, None.

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
