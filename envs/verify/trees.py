"""The file trees that shell commands run over, made for a reference: the same on every machine.

A tree holds the files and directories that the reference names. The words that it names occur in their text
alone, twice in a line, inside longer words and in capitals, among empty, short, indented and repeated lines.
"""

from __future__ import annotations

import functools
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from envs.shellwords import Command, ShellSyntaxError, names, split
from envs.streams import stream
from envs.verify.sandbox.archive import Entry, Tree

TREES = 3
FILE = re.compile(r"[\w@%+~.-]*\w\.\w{1,8}")
DIRECTORY = re.compile(r"[\w-][\w./-]*")
BARE = re.compile(r"[A-Za-z][\w-]+")  # what may be a file's name without a suffix
FILE_OPERANDS = names("cat cmp comm diff head join od rev sort tac tail wc")  # their operands are files
SORTED_OPERANDS = names("comm join")  # and of these, sorted ones
DIRECTORY_OPERANDS = names("find ls du cd tree rmdir")  # their first operand is a directory
LAST_IS_NEW = names("cp mv ln touch mkdir install")  # their last operand need not exist
NEEDS_TWO = names("cp mv ln install")  # of these: with one operand they make nothing
LONGEST_NAME = 255  # bytes
MOST_WORDS = 6
VOCABULARY = """
alpha bravo garden window yellow simple market silent bridge copper winter shadow pepper signal marble
forest ribbon candle harbor saddle meadow turtle basket pocket velvet engine thunder lantern
""".split()  # noqa: SIM905


@dataclass(frozen=True)
class Names:
    """What a reference names.

    Attributes:
        files: those that are there.
        made: the names that it makes.
        words: to be found in the files.
        suffixes: of the files that a glob such as `*.py` means.
        in_order: whether the lines of files are sorted.
        uneven: whether no two files have as many lines, and no two directories as many files.
    """

    files: tuple[str, ...]
    made: tuple[str, ...]
    directories: tuple[str, ...]
    words: tuple[str, ...]
    suffixes: tuple[str, ...] = ()
    in_order: bool = False
    uneven: bool = False


@functools.lru_cache(maxsize=4096)
def names_of(reference: str) -> Names:
    """What a reference names, as far as its words show.

    `FILE.EXT` is a file, and so is a name that `cat` and the like or `<` reads. What ends in `/`, and the
    first operand of `find` or `ls`, is a directory.
    """
    try:
        commands = split(reference)
    except ShellSyntaxError:
        commands = []
    files: list[str] = []
    made: list[str] = []
    directories: list[str] = []
    others: list[str] = []
    for command in commands:
        operands = _operands(command)
        made += _written(command)
        if command.name in LAST_IS_NEW and len(operands) > (command.name in NEEDS_TWO):
            last = operands.pop()
            (directories if last.endswith("/") else made).append(last.rstrip("/"))
        for place, word in enumerate(operands):
            if FILE.fullmatch(word.rsplit("/", 1)[-1]) and not word.startswith(("/", "*")):
                files.append(word)
            elif _is_directory(word, first_of_tool=command.name in DIRECTORY_OPERANDS and place == 0):
                directories.append(word.rstrip("/"))
            elif BARE.fullmatch(word) and _is_read(word, command):
                files.append(word)
            else:
                others.append(word)
    suffixes: list[str] = []
    words: list[str] = []
    for text in others:
        suffixes += re.findall(r"\*\.(\w{1,8})$", text)
        words += re.findall(r"[^\W\d_]{3,}", text)
    return Names(
        _distinct(name for name in files if name not in made),
        _distinct(made),
        _distinct(directories),
        _distinct(words)[:MOST_WORDS],
        _distinct(suffixes),
        any(command.name in SORTED_OPERANDS for command in commands),
    )


def names_of_all(commands: Sequence[str]) -> Names:
    """What several commands name together, in whatever order they come. What one of them reads is there.

    It is uneven, for a command that counts in the wrong place to give another number.
    """
    all_names = [names_of(command) for command in sorted(set(commands))]
    files = _distinct(name for names in all_names for name in names.files)
    made = _distinct(name for names in all_names for name in names.made if name not in files)
    directories = _distinct(name for names in all_names for name in names.directories)
    words = Counter(word for names in all_names for word in names.words)
    suffixes = _distinct(suffix for names in all_names for suffix in names.suffixes)
    most_named = tuple(word for word, _ in words.most_common(MOST_WORDS))
    in_order = any(names.in_order for names in all_names)
    return Names(files, made, directories, most_named, suffixes, in_order, uneven=True)


def _operands(command: Command) -> list[str]:
    """The words of a command that are neither its name nor options, and what it reads from."""
    operands = [word.value for word in command.words[1:]]
    operands += _read(command)
    operands += [target.value for operator, target in command.redirections if operator == "<<<"]
    return [word for word in operands if not word.startswith("-")]


def _is_read(word: str, command: Command) -> bool:
    """Whether an operand of a command is a file, by where it stands."""
    of_tool = command.name in FILE_OPERANDS and any(word == other.value for other in command.words[1:])
    return of_tool or word in _read(command)


def _read(command: Command) -> list[str]:
    """The files that a command's input comes from."""
    return [target.value for operator, target in command.redirections if operator == "<"]


def _written(command: Command) -> list[str]:
    """The files that a command's output goes to."""
    return [target.value for operator, target in command.redirections if operator.endswith((">", ">|"))]


def _is_directory(word: str, first_of_tool: bool) -> bool:
    return DIRECTORY.fullmatch(word) is not None and (word.endswith("/") or first_of_tool)


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


@functools.lru_cache(maxsize=4096)
def make_tree(names: Names, number: int) -> Tree:
    """The `number`-th tree for these names.

    The modes of files differ from tree to tree. In the last tree what the reference makes is there already.
    """
    rng = stream("tree", number, *names.files, *names.directories, *names.words)
    mode = (0o644, 0o640, 0o674)[number % 3]  # the last tells `g=rx` from `g+x`
    tree: dict[str, Entry] = {}
    files = [*names.files, "zebra.txt", "yak.log"]
    for suffix in names.suffixes:
        files += [f"quiz.{suffix}", f"owl.{suffix}"]
    if number == TREES - 1:
        files += [name for name in names.made if FILE.fullmatch(name.rsplit("/", 1)[-1])]
    for place, name in enumerate(files):
        content = _content(name, names.words, rng)
        if names.uneven:
            content += b"".join(b"%d more\n" % line for line in range(place))
        if names.in_order:
            content = b"".join(sorted(content.splitlines(keepends=True)))
        _put(tree, name, Entry("file", mode, content))
    for place, name in enumerate((*names.directories, "elsewhere")):
        for path, entry in _nested(name, (*names.suffixes, *names.words), rng).items():
            _put(tree, path, entry)
        for more in range(place if names.uneven else 0):
            for suffix in (*names.suffixes, "txt"):
                _put(tree, f"{name}/more{more}.{suffix}", Entry("file", 0o644, b"more\n"))
    ages = rng.sample(range(len(tree)), len(tree))  # no two of an age
    aged = {}
    for (path, entry), age in zip(tree.items(), ages, strict=True):
        aged[path] = replace(entry, mtime=entry.mtime + 3600 * age)
    return aged


def _put(tree: dict[str, Entry], path: str, entry: Entry) -> None:
    """Adds an entry and the directories above it, but no path that leads out of the tree or cannot exist."""
    parts = path.split("/")
    above = ["/".join(parts[:end]) for end in range(1, len(parts))]
    if any(part in ("", ".", "..") or len(part.encode()) > LONGEST_NAME for part in parts):
        return
    if any(name in tree and tree[name].kind != "directory" for name in above):
        return
    if path in tree and tree[path].kind != entry.kind:
        return
    for name in above:
        tree.setdefault(name, Entry("directory", 0o755))
    tree[path] = entry


def _content(name: str, words: Sequence[str], rng: random.Random) -> bytes:
    """About 70 to 100 lines: numbers of several widths, then words.

    The most frequent lines occur 3 to 11 times, each a different number of times. Among the others are empty,
    short and indented lines, lines without a number, and one like a frequent line but for its capitals.
    """
    forms: list[str] = []
    for word in words:
        forms += _forms(word)
    of_all_widths = [*range(1, 10), *range(10, 100, 3), *range(100, 1000, 50), *range(1000, 10_000, 600)]
    numbers = rng.sample(of_all_widths, max(22, len(forms) + 6))
    lines: list[str] = []
    for place, number in enumerate(numbers):
        parts = rng.choices(VOCABULARY, k=rng.randint(3, 5))
        if place < len(forms):
            at = len(parts) if place % 3 else rng.randint(0, len(parts))
            parts.insert(at, forms[place])
        if name.endswith(".csv") and place % 7 == 6:
            number = numbers[place - 1]  # a first column whose values are repeated in different lines
        if place % 9 == 4:
            parts.append("café")  # more bytes than characters
        lines.append(_line(name, number, parts, rng))
    frequent = rng.sample(lines, 9)
    for line, times in zip(frequent, range(3, 12), strict=True):
        lines += [line] * (times - 1)
    comma = "," if name.endswith(".csv") else " "
    lines += ["", "", frequent[-1].upper(), f"{numbers[0]}{comma}{rng.choice(VOCABULARY)}"]
    lines.append(f"  {_line(name, 8, rng.sample(VOCABULARY, 4), rng)}")
    for first in ("Yellow", "alpha", "~candle", "garden!"):
        lines.append(comma.join([first, *rng.sample(VOCABULARY, 4)]))
    rng.shuffle(lines)
    return ("\n".join(lines) + "\n").encode()


def _line(name: str, number: int, parts: Sequence[str], rng: random.Random) -> str:
    if name.endswith(".csv"):
        low, high = rng.choice(VOCABULARY[:7]), rng.choice(VOCABULARY[7:14])
        return ",".join([str(number), low, high, str(rng.randint(1, 12)), " ".join(parts)])
    gap = rng.choice((" ", " ", " ", "  ", "\t"))
    return f"{number}{gap}{' '.join(parts)}"


def _forms(word: str) -> list[str]:
    """A word as searches tell it apart: alone, twice, inside longer words, in capitals."""
    doubled = [f"{word} and {word}", f"{word}{word}"]
    longer = [f"re{word}", f"{word}s"]
    capitals = [word.upper(), word.capitalize()]
    return [word, word, *doubled, *longer, *capitals, f"({word})", _mixed(word)]


def _mixed(word: str) -> str:
    """Small letters and capitals in turn."""
    letters = list(word)
    letters[1::2] = [letter.upper() for letter in letters[1::2]]
    return "".join(letters)


def _nested(name: str, words: Sequence[str], rng: random.Random) -> dict[str, Entry]:
    """A directory with entries at several depths, and with names that only look like what is sought."""
    tree: dict[str, Entry] = {name: Entry("directory", 0o755)}
    short = [word for word in words if len(word) <= 5]
    suffixes = _distinct([*short[:3], "txt", "log", "csv"])
    one, two = rng.choice(VOCABULARY), rng.choice(VOCABULARY)
    for inner in ("", f"{one}/", f"{two}/deep/", "old.txt/", ".hidden/"):
        for suffix in suffixes:
            path = f"{name}/{inner}{rng.choice(VOCABULARY)}{rng.randint(1, 99)}.{suffix}"
            mode, word = rng.choice((0o644, 0o755)), rng.choice(VOCABULARY)
            tree[path] = Entry("file", mode, f"{word}\n".encode())
        if inner:
            tree[f"{name}/{inner}".rstrip("/")] = Entry("directory", 0o755)
    tree[f"{name}/empty"] = Entry("directory", 0o755)
    for suffix in suffixes:
        for odd in (f"upper.{suffix.upper()}", f"kept.{suffix}.bak", suffix):
            tree[f"{name}/{odd}"] = Entry("file", 0o644, b"x\n")
        tree[f"{name}/folder.{suffix}"] = Entry("directory", 0o755)
        tree[f"{name}/link.{suffix}"] = Entry("link", 0o777, b"elsewhere")  # leads nowhere
        tree[f"{name}/alias.{suffix}"] = Entry("link", 0o777, f"kept.{suffix}.bak".encode())
    tree[f"{name}/shortcut"] = Entry("link", 0o777, b"old.txt")
    return tree
