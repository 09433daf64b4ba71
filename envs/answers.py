"""Takes the command out of an answer: instruct models wrap it in fences, sentences, prompts and thoughts.

    take_out("Sure! Here it is:\\n```bash\\n$ ls -l\\n```")  ->  Answer("ls -l")

Rules, in this order; the first that applies decides:

1. A thought (`<think>...</think>` and its kin) is dropped. One that never ends leaves no command.
2. A tag (`<command>...</command>`) or a JSON object with one of the usual keys holds the command.
3. Fenced blocks. Blocks of output do not count. Two different blocks are ambiguous.
4. A line after a label ("Command: ls") or after a sentence that announces it ("Here is the command:").
5. Text in backticks inside a sentence. Two different ones are ambiguous, unless one contains the others.
6. The first line that is not a sentence.

What is left loses prompts (`$ `, `sqlite> `), comment lines, wrapping quotes and emphasis. Continued lines
are joined. Nothing of the command itself is changed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from envs.jsonl import from_json

OPEN_THOUGHT = re.compile(r"<(think|thinking|thought|reasoning|reflection)>", re.IGNORECASE)
END_OF_THOUGHT = re.compile(
    r"\A.*</(think|thinking|thought|reasoning|reflection)>", re.DOTALL | re.IGNORECASE
)
# gpt-oss writes channels; decoding without special tokens leaves the words alone.
FINAL_CHANNEL = re.compile(r"\A.*<\|channel\|>final<\|message\|>", re.DOTALL)
TAG = re.compile(r"<(command|answer|cmd|code|bash|sql)>", re.IGNORECASE)
KEYS = ("command", "cmd", "query", "sql", "answer")
FENCE = re.compile(
    r"^[ \t]*(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[\w+#.-]*)[^\n`]*\n"
    r"(?P<body>.*?)(?:^[ \t]*(?P=fence)|\Z)",
    re.DOTALL | re.MULTILINE,
)
ONE_LINE_FENCE = re.compile(r"```(?:(?:bash|sh|shell|zsh|console|sql|sqlite)[ \t]+)?([^`\n]+)```")
OUTPUTS = {"output", "text", "txt", "plaintext", "csv", "json", "log", "result"}
LABEL = re.compile(
    r"^[\s>*_#-]*(?:(?:the|final|shell|bash|linux|sql|network|nmap|one-line)\s+)*"
    r"(?:command|answer|query|solution|cmd|sql|bash|shell)(?:\s+(?:is|line))?\s*[*_]*\s*:\s*[*_]*\s*(?P<rest>.*)$",
    re.IGNORECASE,
)
EMPHASIS = re.compile(r"[\s>#-]*([*_]+)")  # that a line begins with, and may end with
ANNOUNCES = re.compile(r"\b(?:command|query|answer|following|this|it|use|run|try|do|is)\b", re.IGNORECASE)
SPAN = re.compile(r"(?<!`)(?:`([^`\n]+)`|``([^\n]+?)``)(?!`)")
PROMPT = re.compile(
    r"^\s*(?:(?:[\w.-]+@[\w.-]+[:\s][^$#\n]*)?\$|>|sqlite>|mysql>|\w+=[#>]|PS [A-Z]:\\[^>]*>)\s+"
)
BULLET = re.compile(r"^\s*(?:[-*\u2022]|\d+[.)])\s+")
SQL = re.compile(r"^\s*(?:select|with|insert|update|delete|create|explain|values)\b", re.IGNORECASE)
SQL_CLAUSE = re.compile(
    r"^\s*(?:from|where|group|order|having|limit|join|left|inner|on|and|or|union|as|set|values|case|when|then|end|offset|"
    r"cross|\(|\)|[\w.\"]+\s*(?:,|$|\())",
    re.IGNORECASE,
)
# A sentence begins with one of these words, or like one: a capital letter, words, a full stop or a colon.
PROSE = frozenset(
    [
        "a",
        "an",
        "and",
        "answer",
        "as",
        "certainly",
        "command",
        "explanation",
        "first",
        "here",
        "i",
        "in",
        "it",
        "just",
        "let",
        "note",
        "of",
        "okay",
        "ok",
        "please",
        "query",
        "simply",
        "sure",
        "that",
        "the",
        "then",
        "there",
        "these",
        "this",
        "to",
        "try",
        "use",
        "using",
        "we",
        "will",
        "you",
        "your",
        "run",
        "execute",
        "type",
        "enter",
        "output",
        "result",
    ]
)
# These are commands too, when what follows looks like arguments.
ALSO_COMMANDS = frozenset(("type", "let", "in", "at"))


@dataclass(frozen=True)
class Answer:
    """What was taken out of an answer.

    Attributes:
        command: None where there is none, or where it cannot be told which.
        reason: why there is none; empty where there is one.
        plain: the answer was nothing but the command.
    """

    command: str | None
    reason: str = ""
    plain: bool = False


def first_line(answer: str) -> str:
    """The first line after any thought that is not blank: what is read where no command is wanted."""
    text = _without_thoughts(answer.strip()) or ""
    return text.split("\n")[0].strip()


def take_out(answer: str) -> Answer:
    """The command in an answer."""
    text = answer.replace("\r\n", "\n").replace("\u00a0", " ").strip()
    thoughtless = _without_thoughts(text)
    if thoughtless is None:
        return Answer(None, "a thought without an end")
    candidates = _candidates(thoughtless)
    commands = list(dict.fromkeys(filter(None, map(_cleaned, candidates))))
    if not commands:
        return Answer(None, "no command")
    if len(commands) > 1:
        return Answer(None, f"{len(commands)} different commands")
    if "\n" in commands[0]:
        return Answer(None, "several commands in one block")
    return Answer(commands[0], plain=commands[0] == text)


def command_in(answer: str) -> str:
    """The command in an answer; empty where there is none."""
    return take_out(answer).command or ""


def _without_thoughts(text: str) -> str | None:
    """The text after the last thought; None where a thought has no end."""
    text = FINAL_CHANNEL.sub("", text)
    for start, _, _, end in reversed(_enclosed(OPEN_THOUGHT, text)):
        text = text[:start] + text[end:]
    if OPEN_THOUGHT.search(text):
        return None
    # Some templates open the thought in the prompt, so that only its end is written.
    return END_OF_THOUGHT.sub("", text).strip()


def _enclosed(tag: re.Pattern[str], text: str) -> list[tuple[int, int, int, int]]:
    """Where elements of a tag are: the start, the inside's start and end, and the end of each, in order.

    A pattern with both ends in it would look for the end of every tag up to the end of the text.
    """
    found = []
    at = 0
    unclosed = set()
    while opening := tag.search(text, at):
        at = opening.end()
        name = opening[1].lower()
        closing = None if name in unclosed else re.compile(f"</{name}>", re.IGNORECASE).search(text, at)
        if closing is None:
            unclosed.add(name)
        else:
            found.append((opening.start(), opening.end(), closing.start(), closing.end()))
            at = closing.end()
    return found


def _candidates(text: str) -> list[str]:
    """What could be the command, as written; several where the answer has several."""
    if tags := [text[start:end] for _, start, end, _ in _enclosed(TAG, text)]:
        return [inner for tag in tags for inner in _candidates(tag.strip())]
    if (value := _from_json(text)) is not None:
        return [value]
    if blocks := _blocks(text):
        return [_from_json(body.strip()) or body for body in blocks]
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) > 1 and all(BULLET.match(line) for line in lines):
        return [BULLET.sub("", line) for line in lines]
    announced = _announced(lines)
    if announced is not None:
        return announced
    return _from_lines(lines)


def _from_json(text: str) -> str | None:
    if not text.startswith("{"):
        return None
    try:
        value = from_json(text)
    except ValueError:
        return None
    for key in KEYS:
        if isinstance(value, dict) and isinstance(value.get(key), str):
            return str(value[key])
    return None


def _blocks(text: str) -> list[str]:
    """Bodies of fenced blocks, without those that are labelled as output when others are not."""
    found = [(match["language"].lower(), match["body"]) for match in FENCE.finditer(text)]
    if not found:
        found = [("", match[1]) for match in ONE_LINE_FENCE.finditer(text)]
    bodies = [body for language, body in found if language not in OUTPUTS]
    return bodies or [body for _, body in found]


def _announced(lines: list[str]) -> list[str] | None:
    """What follows a label, or a sentence that ends in a colon; None where nothing is announced."""
    for number, line in enumerate(lines):
        rest = None
        if match := LABEL.match(line):
            rest = match["rest"]
        elif _is_prose(line):
            rest = _after_colon(line)
        if rest is None:
            continue
        rest = rest.lstrip(" *_").rstrip()
        if emphasis := EMPHASIS.match(line):
            rest = rest.removesuffix(emphasis[1])
        return _from_lines([rest, *lines[number + 1 :]] if rest else lines[number + 1 :])
    return None


def _after_colon(sentence: str) -> str | None:
    """What follows the last words that announce a command, up to a colon; nothing in backticks announces."""
    parts = sentence.partition("`")[0].split(":")
    for number in reversed(range(len(parts) - 1)):
        if ANNOUNCES.search(parts[number]):
            announcement = ":".join(parts[: number + 1])
            return sentence[len(announcement) + 1 :].lstrip()
    return None


def _from_lines(lines: list[str]) -> list[str]:
    """The first line that is no sentence, with those that continue it; else what stands in backticks."""
    for number, line in enumerate(lines):
        if line.lstrip(" *_").startswith("`") and (spans := _spans(line)):
            return spans
        if not _is_prose(line):
            return ["\n".join(_continued(lines[number:]))]
        if spans := _spans(line):
            return spans
    return []


def _continued(lines: list[str]) -> list[str]:
    """The first command's lines: those that a backslash, an operator or SQL carries on."""
    kept = [lines[0]]
    for line in lines[1:]:
        last = kept[-1].rstrip()
        carried_on = last.endswith(("\\", "|", "&&", "||", ",", "(")) or line.lstrip().startswith(("|", "&&"))
        in_query = bool(SQL.match(kept[0])) and not last.endswith(";") and bool(SQL_CLAUSE.match(line))
        if not (carried_on or in_query):
            break
        kept.append(line)
    return kept


def _spans(line: str) -> list[str]:
    """Texts in backticks, without those that are a part of another one."""
    found = list(dict.fromkeys((match[1] or match[2]).strip() for match in SPAN.finditer(line)))
    whole = []
    for span in found:
        inside = any(span != other and span in other for other in found)
        if not inside:
            whole.append(span)
    return whole


def _is_prose(line: str) -> bool:
    """Whether a line is a sentence rather than a command."""
    bare = BULLET.sub("", line).strip(" *_")
    if PROMPT.match(line) or SQL.match(bare):
        return False
    first = re.match(r"[A-Za-z']+(?!=)", bare)
    if first is None:
        return bare.startswith("#")
    word, rest = first[0].lower(), bare[first.end() :]
    if word.partition("'")[0] in PROSE:
        looks_like_arguments = re.match(r"\s+[-./~$\"'*]", rest) is not None
        return not (word in ALSO_COMMANDS and looks_like_arguments)
    capital = first[0][0].isupper() and first[0][1:].islower()
    return capital and re.match(r"[,!:.]|\s+[a-z`']", rest) is not None


def _cleaned(text: str) -> str:
    """A command without prompts, comment lines, emphasis and quotes around it; continued lines joined."""
    lines = [line.rstrip() for line in text.strip("\n").split("\n") if line.strip()]
    prompted = [line for line in lines if PROMPT.match(line)]
    if prompted:  # a session: what has no prompt is what was printed
        lines = [PROMPT.sub("", line) for line in prompted]
    lines = [line for line in lines if not line.lstrip().startswith(("#", "--"))]
    joined = _joined([_bare(line) if len(lines) == 1 else line.strip() for line in lines])
    return "\n".join(dict.fromkeys(line.strip() for line in joined))


def _bare(line: str) -> str:
    line = re.sub(r"^\s*(?:[-*\u2022]|\d+[.)])\s+(?=[`*])", "", line).strip()
    for emphasis in ("**", "__"):
        if line.startswith(emphasis) and line.endswith(emphasis) and len(line) > 4:
            line = line[2:-2].strip()
    if (match := SPAN.fullmatch(line)) is not None:
        line = (match[1] or match[2]).strip()
    quoted = re.fullmatch(r"\"([^\"]*\s[^\"]*)\"|'([^']*\s[^']*)'", line)
    if quoted is not None:
        line = quoted[1] or quoted[2]
    return PROMPT.sub("", line).strip()


def _joined(lines: list[str]) -> list[str]:
    """Lines of a block, with those that belong together joined by a space."""
    if lines and SQL.match(lines[0]):
        return _joined_queries(lines)
    joined: list[str] = []
    open_line = False
    for line in lines:
        continues = line.startswith(("|", "&&", "||"))
        text = line.removesuffix("\\").rstrip()
        if joined and (open_line or continues):
            joined[-1] = f"{joined[-1]} {text}"
        else:
            joined.append(text)
        open_line = line.endswith(("\\", "|", "&&", "||"))
    return joined


def _joined_queries(lines: list[str]) -> list[str]:
    """A query over several lines on one line; a semicolon at a line's end ends it."""
    queries: list[str] = []
    ended = True
    for line in lines:
        if ended:
            queries.append(line)
        else:
            queries[-1] = f"{queries[-1]} {line}"
        ended = line.endswith(";")
    return queries
