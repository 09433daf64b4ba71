"""Shell commands: the reference and the candidate each run in fresh sandboxes over the same generated file trees.

Standard output, exit status and the tree afterwards are compared, on three trees, so that a coincidence does not pass. The trees
are made for the reference: they hold the files and directories that it names, and text in which the words that it names occur
alone, twice in a line, inside longer words and in capitals, among empty, short, indented and repeated lines. What is compared of a
tree: names, kinds, contents, hard links, and the modes of what was there before. Not compared: standard error, times, the modes of
new files. A reference of which nothing shows on the trees cannot tell right from wrong, and neither can one that fails.
"""

from __future__ import annotations

import functools
import random
import re
import shlex
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from envs.streams import stream
from envs.verify.sandbox.archive import Entry, Tree
from envs.verify.sandbox.probe import unavailable
from envs.verify.sandbox.run import Execution, execute
from envs.verify.verdict import Verdict

TREES = 3
WALL = 3.0  # seconds a command may run
PATIENCE = (
    15.0  # seconds where the machine is too busy for `true` to end within STALLED seconds, and for references
)
STALLED = 0.25
FILE = re.compile(r"[\w@%+~.-]*\w\.\w{1,8}")
DIRECTORY_OPERANDS = {"find", "ls", "du", "cd", "tree", "rmdir"}  # their first operand is a directory
LAST_IS_NEW = {"cp", "mv", "ln", "touch", "mkdir", "install"}  # their last operand need not exist
VOCABULARY = [
    "alpha",
    "bravo",
    "garden",
    "window",
    "yellow",
    "simple",
    "market",
    "silent",
    "bridge",
    "copper",
    "winter",
    "shadow",
    "pepper",
    "signal",
    "marble",
    "forest",
    "ribbon",
    "candle",
    "harbor",
    "saddle",
    "meadow",
    "turtle",
    "basket",
    "pocket",
    "velvet",
    "engine",
    "thunder",
    "lantern",
]
FAILED_TO_PARSE = re.compile(r"bash: .*(syntax error|unexpected EOF)")
MISUSE = re.compile(
    r"invalid (trailing )?option|unrecognized option|unknown option|unknown predicate|invalid mode|missing operand|option requires an"
    r"|: command not found|awk: .*(syntax error|missing)|sed: -e expression"
)
NOT_THERE = "No such file or directory"
SUDO = re.compile(r"\s*sudo\s+(?!-)")
VERSIONS = "readlink -f $(command -v awk); for tool in bash sed grep find sort cp; do $tool --version | head -n 1; done"


@dataclass(frozen=True)
class Names:
    """What a reference names: files that are there, names that it makes, directories, and words to find in the files."""

    files: tuple[str, ...]
    made: tuple[str, ...]
    directories: tuple[str, ...]
    words: tuple[str, ...]
    suffixes: tuple[str, ...] = ()


def compare(reference: str, command: str, ordered: bool) -> Verdict:
    """Runs both (the reference once for all) and says whether they do the same. Never raises for what a command does."""
    started = time.perf_counter()
    if missing := unavailable():
        return Verdict("not_executed", missing)
    if not command.strip():
        return Verdict("invalid", "empty")
    found = reference_results(reference)
    if isinstance(found, Verdict):
        return found
    command = SUDO.sub("", command, count=1) if SUDO.match(command) else command.strip()
    if command == reference:  # it did the same twice, and most right answers do equal it
        return Verdict("correct", seconds=time.perf_counter() - started)
    for number, (tree, wanted) in enumerate(found, start=1):
        verdict = _judge(tree, wanted, _run(command, tree), ordered, number)
        if verdict is not None:
            return Verdict(verdict.status, verdict.reason, verdict.differed, time.perf_counter() - started)
    return Verdict("correct", seconds=time.perf_counter() - started)


def _run(command: str, tree: Tree) -> Execution:
    done = execute(command, tree, wall=WALL)
    if (
        done.ended == "timeout"
    ):  # once more: the machine may be slow, and a sandbox was seen, if rarely, to miss the end of a command
        done = execute(command, tree, wall=PATIENCE if execute("true").seconds > STALLED else WALL)
    return done


def _run_reference(reference: str, tree: Tree) -> Execution:
    done = execute(reference, tree, wall=WALL)
    return execute(reference, tree, wall=PATIENCE) if done.ended == "timeout" else done


_locks = [threading.Lock() for _ in range(64)]


def reference_results(reference: str) -> list[tuple[Tree, Execution]] | Verdict:
    """What the reference does on each of its trees; a `not_executed` verdict where that is nothing to compare with."""
    with _locks[
        hash(reference) % len(_locks)
    ]:  # several candidates of one task come at once, and the reference is run for one of them
        try:
            return _reference_results(reference)
        except TimeoutError as error:  # not remembered: another time it may end
            return Verdict("not_executed", str(error))


@functools.lru_cache(maxsize=4096)
def _reference_results(reference: str) -> list[tuple[Tree, Execution]] | Verdict:
    names = names_of(reference)
    trees = [make_tree(names, number) for number in range(TREES)]
    results = [(tree, _run_reference(reference, tree)) for tree in trees]
    for tree, wanted in results:
        if wanted.ended == "timeout":
            raise TimeoutError(f"the reference does not end within {PATIENCE:g} s: {reference}")
        if wanted.ended != "exited" or wanted.tree is None or wanted.exit_code in (126, 127):
            return Verdict("not_executed", f"the reference does not run here: {_ending(wanted)}: {reference}")
        if wanted.exit_code and wanted.stderr:
            return Verdict(
                "not_executed", f"the reference fails here: {_first_line(wanted.stderr)}: {reference}"
            )
        again = _run_reference(reference, tree) if tree is trees[0] else wanted
        if _judge(tree, wanted, again, True, 1) is not None:
            return Verdict("not_executed", f"the reference does not do the same twice: {reference}")
    if all(
        not wanted.stdout and wanted.tree is not None and not _trees_differ(tree, tree, wanted.tree)
        for tree, wanted in results
    ):
        return Verdict("not_executed", f"nothing of the reference shows on the generated trees: {reference}")
    return results


def _judge(tree: Tree, wanted: Execution, got: Execution, ordered: bool, number: int) -> Verdict | None:
    """None where nothing differs."""
    where = f"tree {number}: "
    if got.ended != "exited":
        return Verdict("wrong", _ending(got), where + _ending(got))
    if got.exit_code in (126, 127) and wanted.exit_code != got.exit_code:
        return Verdict("invalid", _first_line(got.stderr) or "cannot be run")
    differs = _difference(tree, wanted, got, ordered, where)
    error, usual = (execution.stderr.decode(errors="replace") for execution in (got, wanted))
    if differs and (FAILED_TO_PARSE.search(error) or MISUSE.search(error)) and not MISUSE.search(usual):
        return Verdict("invalid", _first_line(got.stderr))
    if (
        not differs and NOT_THERE in error and NOT_THERE not in usual
    ):  # where there were such a file, it would do something else
        return Verdict("wrong", "names a file that is not there", where + _first_line(got.stderr))
    return differs


def _difference(tree: Tree, wanted: Execution, got: Execution, ordered: bool, where: str) -> Verdict | None:
    """The first of output, exit status and tree that differs."""
    if differed := _lines_differ(wanted.stdout, got.stdout, ordered):
        return Verdict("wrong", "other output", where + differed)
    if wanted.exit_code != got.exit_code:
        return Verdict("wrong", "other exit status", f"{where}{got.exit_code} instead of {wanted.exit_code}")
    assert wanted.tree is not None
    if got.tree is None:
        return Verdict("wrong", "left a tree that cannot be read", where.rstrip(": "))
    if differed := _trees_differ(tree, wanted.tree, got.tree):
        return Verdict("wrong", "other files afterwards", where + differed)
    return None


def _lines_differ(wanted: bytes, got: bytes, ordered: bool) -> str:
    """What differs, or nothing. White space at the ends of lines and line feeds at the end do not count."""
    left, right = (
        [line.rstrip() for line in text.decode(errors="replace").rstrip().split("\n")]
        for text in (wanted, got)
    )
    if left == right or (not ordered and sorted(left) == sorted(right)):
        return ""
    if sorted(left) == sorted(right):
        return "the same lines in another order"
    first = next(
        (place for place, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]),
        min(len(left), len(right)),
    )
    shown = [_short(lines[first]) if first < len(lines) else "nothing" for lines in (right, left)]
    count = "" if len(left) == len(right) else f"{len(right)} lines instead of {len(left)}; "
    return f"{count}line {first + 1}: {shown[0]} instead of {shown[1]}"


def _trees_differ(before: Tree, wanted: Tree, got: Tree) -> str:
    for path in sorted({*wanted, *got}):
        left, right = wanted.get(path), got.get(path)
        name = _short(path)
        if left is None or right is None:
            return f"{name} is {'there' if left is None else 'missing'}"
        if left.kind != right.kind:
            return f"{name} is a {right.kind} instead of a {left.kind}"
        if left.content != right.content:
            return f"{name} has another content"
        if left.kind == "file" and left.links != right.links:
            return f"{name} has {right.links} hard links instead of {left.links}"
        if path in before and left.mode != right.mode:
            return f"{name} has mode {right.mode:o} instead of {left.mode:o}"
    return ""


@functools.cache
def versions() -> tuple[str, ...]:
    """What truth by execution depends on: the tools inside the sandbox, a line each; nothing where there is none."""
    return () if unavailable() else tuple(execute(VERSIONS).stdout.decode(errors="replace").splitlines())


def _ending(execution: Execution) -> str:
    how = {
        "timeout": f"ran longer than {WALL:g} s",
        "output": "wrote too much",
        "killed": "was killed",
        "exited": "ended",
    }
    return how[execution.ended] if execution.ended != "exited" else f"ended with status {execution.exit_code}"


def _first_line(text: bytes) -> str:
    lines = [line for line in text.decode(errors="replace").splitlines() if line.strip()]
    return (
        _short(re.sub(r"^(/\w+)*/?bash: (-c: )?(line \d+: )?", "", lines[0]), 120).strip("'\"`")
        if lines
        else ""
    )


def _short(text: str, most: int = 40) -> str:
    shown = repr(text)
    return shown if len(shown) <= most else f"{shown[: most - 4]}...{shown[0]}"


# ---- trees ----


@functools.lru_cache(maxsize=4096)
def names_of(reference: str) -> Names:
    """What a reference names, as far as its words show: `FILE.EXT` is a file, a bare operand of `find` or `ls` a directory."""
    files: list[str] = []
    made: list[str] = []
    directories: list[str] = []
    others: list[str] = []
    for words in _simple_commands(reference):
        tool, operands, redirected = words[0], [], False
        for word in words[1:]:
            if word in (">", ">>", "<"):
                redirected = word != "<"
            elif redirected:
                made.append(word)
                redirected = False
            elif not word.startswith("-"):
                operands.append(word)
        if tool in LAST_IS_NEW and len(operands) > (tool in ("cp", "mv", "ln", "install")):
            (directories if operands[-1].endswith("/") else made).append(operands.pop().rstrip("/"))
        for place, word in enumerate(operands):
            if FILE.fullmatch(word.rsplit("/", 1)[-1]) and not word.startswith(("/", "*")):
                files.append(word)
            elif re.fullmatch(r"[\w-][\w./-]*", word) and (
                word.endswith("/") or (tool in DIRECTORY_OPERANDS and not place)
            ):
                directories.append(word.rstrip("/"))
            else:
                others.append(word)
    suffixes = [suffix for text in others for suffix in re.findall(r"\*\.(\w{1,8})$", text)]
    words = [word for text in others for word in re.findall(r"[^\W\d_]{3,}", text)]
    return Names(
        tuple(dict.fromkeys(name for name in files if name not in made)),
        tuple(dict.fromkeys(made)),
        tuple(dict.fromkeys(directories)),
        tuple(dict.fromkeys(words))[:6],
        tuple(dict.fromkeys(suffixes)),
    )


def _simple_commands(text: str) -> list[list[str]]:
    """The words of each command of a line, quotes removed; nothing of a line whose quotes do not close."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="();|&<>")
    lexer.whitespace_split = True
    lexer.commenters = ""
    commands: list[list[str]] = [[]]
    try:
        for word in lexer:
            if set(word) <= set("();|&") and word:
                commands.append([])
            else:
                commands[-1].append(word)
    except ValueError:
        return []
    return [words for words in commands if words]


@functools.lru_cache(maxsize=4096)
def make_tree(names: Names, number: int) -> Tree:
    """The `number`-th tree for these names: the same on every machine.

    The modes of files differ from tree to tree, and in the last tree what the reference makes is there already.
    """
    rng = stream("tree", number, *names.files, *names.directories, *names.words)
    mode = (0o644, 0o640, 0o674)[
        number % 3
    ]  # the last tells `g=rx` from `g+x`, which add to what the first two have
    tree: dict[str, Entry] = {}

    def put(path: str, entry: Entry) -> None:
        parts = path.split("/")
        for end in range(1, len(parts)):
            tree.setdefault("/".join(parts[:end]), Entry("directory", 0o755))
        if ".." not in parts and "." not in parts:
            tree[path] = entry

    files = [
        *names.files,
        "zebra.txt",
        "yak.log",
        *(f"{word}.{suffix}" for suffix in names.suffixes for word in ("quiz", "owl")),
    ]
    if number == TREES - 1:
        files += [name for name in names.made if FILE.fullmatch(name.rsplit("/", 1)[-1])]
    for name in files:
        put(name, Entry("file", mode, _content(name, names.words, rng)))
    for name in (*names.directories, "elsewhere"):
        for path, entry in _nested(name, (*names.suffixes, *names.words), rng).items():
            put(path, entry)
    ages = rng.sample(range(len(tree)), len(tree))  # no two of an age
    return {
        path: replace(entry, mtime=entry.mtime + 3600 * age)
        for (path, entry), age in zip(tree.items(), ages, strict=True)
    }


def _content(name: str, words: Sequence[str], rng: random.Random) -> bytes:
    """Some 70 to 100 lines: numbers of several widths, then words; the most frequent lines occur 3 to 11 times, each a different number.

    Among them: empty, short and indented lines, lines without a number, and one that differs from a frequent one by capitals alone.
    """
    kinds = [form for word in words for form in _forms(word)]
    count = max(22, len(kinds) + 6)
    numbers = rng.sample(
        [*range(1, 10), *range(10, 100, 3), *range(100, 1000, 50), *range(1000, 10_000, 600)], count
    )
    lines = []
    for place, number in enumerate(numbers):
        parts = rng.choices(VOCABULARY, k=rng.randint(3, 5))
        for form in kinds[place : place + 1]:
            parts.insert(len(parts) if place % 3 else rng.randint(0, len(parts)), form)
        if name.endswith(".csv") and place % 7 == 6:
            number = numbers[place - 1]  # a first column whose values are repeated in different lines
        if place % 9 == 4:
            parts.append("café")  # more bytes than characters
        lines.append(_line(name, number, parts, rng))
    frequent = rng.sample(lines, 9)
    lines += [line for line, times in zip(frequent, range(3, 12), strict=True) for _ in range(times - 1)]
    comma = "," if name.endswith(".csv") else " "
    lines += ["", "", frequent[-1].upper(), f"{numbers[0]}{comma}{rng.choice(VOCABULARY)}"]
    lines += [f"  {_line(name, 8, rng.sample(VOCABULARY, 4), rng)}"]
    lines += [
        comma.join([first, *rng.sample(VOCABULARY, 4)]) for first in ("Yellow", "alpha", "~candle", "garden!")
    ]
    rng.shuffle(lines)
    return ("\n".join(lines) + "\n").encode()


def _line(name: str, number: int, parts: Sequence[str], rng: random.Random) -> str:
    if name.endswith(".csv"):
        return ",".join(
            [
                str(number),
                rng.choice(VOCABULARY[:7]),
                rng.choice(VOCABULARY[7:14]),
                str(rng.randint(1, 12)),
                " ".join(parts),
            ]
        )
    gap = rng.choice((" ", " ", " ", "  ", "\t"))
    return f"{number}{gap}{' '.join(parts)}"


def _forms(word: str) -> list[str]:
    """A word as searches tell it apart: alone, twice, inside longer words, in capitals."""
    return [
        word,
        word,
        f"{word} and {word}",
        f"{word}{word}",
        f"re{word}",
        f"{word}s",
        word.upper(),
        word.capitalize(),
        f"({word})",
        _mixed(word),
    ]


def _mixed(word: str) -> str:
    return "".join(letter.upper() if place % 2 else letter for place, letter in enumerate(word))


def _nested(name: str, words: Sequence[str], rng: random.Random) -> dict[str, Entry]:
    """A directory with files and directories at several depths, and names that only look like what is sought."""
    tree: dict[str, Entry] = {name: Entry("directory", 0o755)}
    suffixes = list(dict.fromkeys([*[word for word in words if len(word) <= 5][:3], "txt", "log", "csv"]))
    for inner in (
        "",
        f"{rng.choice(VOCABULARY)}/",
        f"{rng.choice(VOCABULARY)}/deep/",
        "old.txt/",
        ".hidden/",
    ):
        for suffix in suffixes:
            file = f"{rng.choice(VOCABULARY)}{rng.randint(1, 99)}.{suffix}"
            tree[f"{name}/{inner}{file}"] = Entry(
                "file", rng.choice((0o644, 0o755)), f"{rng.choice(VOCABULARY)}\n".encode()
            )
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
