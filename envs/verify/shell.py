"""Shell commands: the reference and the candidate each run in fresh sandboxes over the same file trees.

Standard output, exit status and the tree afterwards are compared on three trees, so that a coincidence does
not pass. Of a tree are compared: names, kinds, contents, hard links, and the modes of what was there before.
Not compared: standard error, times, the modes of new files.

A task with a tree of its own is compared on that one alone.

A reference that fails cannot tell right from wrong, and neither can one that shows nothing on the trees or
does not do the same twice. Its task is `not_executed`.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import threading
import time
from collections.abc import Iterator, Sequence

from envs.shellwords import ShellSyntaxError, Token, tokens, without_sudo
from envs.verify.given import GivenTree
from envs.verify.sandbox.archive import Tree
from envs.verify.sandbox.errors import SandboxError
from envs.verify.sandbox.probe import unavailable
from envs.verify.sandbox.run import Execution, execute
from envs.verify.trees import TREES, Names, make_tree, names_of
from envs.verify.verdict import Verdict

WALL = 3.0  # seconds a command may run
# Seconds for a reference, and for a command on a machine too busy to run `true` within STALLED seconds.
PATIENCE = 15.0
STALLED = 0.25
EFFECTS = 20_000  # effects that are remembered; the same commands come again cycle after cycle
MANY = 10  # times as long as `true` is enough for any command
FAILED_TO_PARSE = re.compile(r"bash: .*(syntax error|unexpected EOF)")
MISUSE = re.compile(
    r"invalid (trailing )?option|unrecognized option|unknown option|unknown predicate|invalid mode"
    r"|missing operand|option requires an|: command not found|awk: .*(syntax error|missing)"
    r"|sed: -e expression"
)
NOT_THERE = "No such file or directory"
CANNOT_BE_RUN = (126, 127)  # the shell's statuses for a command that it finds no way to run
MARK = ".a-stage-failed"
# Leaves MARK in the tree where any command fails, in a pipe or a substitution too. A status of 141 is not a
# failure: the next stage of the pipe read no further, as `head` does.
WATCHED = f"set -E -o pipefail; trap '[ $? = 141 ] || : > /box/{MARK}' ERR\n"
VERSIONS = (
    "readlink -f $(command -v awk);"
    " for tool in bash sed grep find sort cp; do $tool --version | head -n 1; done"
)


def compare(reference: str, command: str, ordered: bool, given: GivenTree | None = None) -> Verdict:
    """Runs both (the reference once for all) and says whether they do the same.

    Never raises for what a command does. A leading `sudo` does not count.

    Args:
        given: the tree to run on, instead of those generated for the reference.
    """
    started = time.perf_counter()
    if missing := unavailable():
        return Verdict("not_executed", missing)
    if not command.strip():
        return Verdict("invalid", "empty")
    reference, command = without_sudo(reference), without_sudo(command)
    found = reference_results(reference, given)
    if isinstance(found, Verdict):
        return found
    verdict = None
    if command != reference:  # else it did the same twice, and most right answers do equal the reference
        verdict = _judge_all(found, command, ordered)
    seconds = time.perf_counter() - started
    if verdict is None:
        return Verdict("correct", seconds=seconds)
    return Verdict(verdict.status, verdict.reason, verdict.differed, seconds)


def _judge_all(found: Sequence[tuple[Tree, Execution]], command: str, ordered: bool) -> Verdict | None:
    """None where nothing differs on any tree; else the verdict of the first that does."""
    for number, (tree, wanted) in enumerate(found, start=1):
        verdict = _judge(tree, wanted, _run(command, tree), ordered, number)
        if verdict is not None:
            return verdict
    loud = _with_errors_shown(command)
    if loud == command:
        return None
    tree, wanted = found[0]
    return _judge_missing(wanted, _run(loud, tree), number=1)


def _run(command: str, tree: Tree) -> Execution:
    """What a command does.

    Raises:
        SandboxError: the machine is too busy to say.
    """
    done = execute(command, tree, wall=WALL)
    if _whole(done):
        return done
    # Once more: the machine may be slow, and rarely a sandbox misses the end of a command.
    idle = execute("true").seconds
    done = execute(command, tree, wall=PATIENCE if idle > STALLED else WALL)
    if not _whole(done) and idle > PATIENCE / MANY:
        raise SandboxError(
            f"the machine needs {idle:.1f} s to run `true`: evaluate again when it has less to do"
        )
    return done


def _run_reference(reference: str, tree: Tree) -> Execution:
    done = execute(reference, tree, wall=WALL)
    return done if _whole(done) else execute(reference, tree, wall=PATIENCE)


def _whole(done: Execution) -> bool:
    """Whether nothing is missing that a busy machine could have kept back."""
    return done.ended == "output" or (done.ended == "exited" and done.tree is not None)


# References

_locks = [threading.Lock() for _ in range(64)]


def reference_results(
    reference: str, given: GivenTree | None = None
) -> list[tuple[Tree, Execution]] | Verdict:
    """What the reference does on each of its trees; a `not_executed` verdict where that proves nothing."""
    # Several candidates of one task come at once, and the reference is run for one of them.
    with _locks[hash(reference) % len(_locks)]:
        try:
            return _reference_results(reference, given)
        except TimeoutError as error:  # not remembered: another time it may end
            return Verdict("not_executed", str(error))


@functools.lru_cache(maxsize=4096)
def _reference_results(reference: str, given: GivenTree | None) -> list[tuple[Tree, Execution]] | Verdict:
    results = []
    for tree in _trees_of(reference, given):
        wanted = _run_reference(reference, tree)
        if wanted.ended == "timeout":
            raise TimeoutError(f"the reference does not end within {PATIENCE:g} s: {reference}")
        if fault := _fault(reference, tree, wanted):
            return Verdict("not_executed", f"the reference {fault}: {reference}")
        results.append((tree, wanted))
    tree, wanted = results[0]
    if _judge(tree, wanted, _run_reference(reference, tree), True, 1) is not None:
        return Verdict("not_executed", f"the reference does not do the same twice: {reference}")
    if not any(_shows(tree, wanted) for tree, wanted in results):
        trees = "the generated trees" if given is None else "its tree"
        return Verdict("not_executed", f"nothing of the reference shows on {trees}: {reference}")
    return results


def _trees_of(reference: str, given: GivenTree | None) -> Iterator[Tree]:
    if given is not None:
        yield given.tree
        return
    names = names_of(reference)
    for number in range(TREES):
        yield make_tree(names, number)


def _fault(reference: str, tree: Tree, done: Execution) -> str:
    """Why a reference that did this proves nothing; empty where it proves something."""
    if done.ended != "exited" or done.tree is None or done.exit_code in CANNOT_BE_RUN:
        return f"does not run here: {_ending(done)}"
    if not done.stderr:
        return ""
    if done.exit_code:
        return f"fails here: {_first_line(done.stderr)}"
    watched = _run_reference(WATCHED + reference, tree)
    if watched.tree is None or MARK in watched.tree:
        return f"fails inside: {_first_line(done.stderr)}"
    return ""


def _shows(tree: Tree, done: Execution) -> bool:
    return bool(done.stdout) or (done.tree is not None and bool(_trees_differ(tree, tree, done.tree)))


# What differs


def _judge(tree: Tree, wanted: Execution, got: Execution, ordered: bool, number: int) -> Verdict | None:
    """None where nothing differs."""
    where = f"tree {number}: "
    if got.ended != "exited":
        return Verdict("wrong", _ending(got), where + _ending(got))
    if got.exit_code in CANNOT_BE_RUN and wanted.exit_code != got.exit_code:
        return Verdict("invalid", _first_line(got.stderr) or "cannot be run")
    differs = _difference(tree, wanted, got, ordered, where)
    if not differs:
        return _judge_missing(wanted, got, number)
    error, usual = _text(got.stderr), _text(wanted.stderr)
    if (FAILED_TO_PARSE.search(error) or MISUSE.search(error)) and not MISUSE.search(usual):
        return Verdict("invalid", _first_line(got.stderr))
    return differs


def _judge_missing(wanted: Execution, got: Execution, number: int) -> Verdict | None:
    """A command that names a file that is not there would do something else where there is one."""
    if NOT_THERE in _text(got.stderr) and NOT_THERE not in _text(wanted.stderr):
        return Verdict("wrong", "names a file that is not there", f"tree {number}: {_first_line(got.stderr)}")
    return None


@functools.lru_cache(maxsize=EFFECTS)
def effect(names: Names, command: str) -> str:
    """What a command does on the trees for these names, as a text that is equal for equal effects.

    These are output (with its order), exit status, and what changes in the trees. Empty where the command
    fails, where it names a file that is not there, and where nothing shows.

    Raises:
        SandboxError: it cannot be executed.
    """
    if missing := unavailable():
        raise SandboxError(missing)
    command = without_sudo(command)
    loud = _with_errors_shown(command)
    found = []
    shows = False
    for number in range(TREES):
        tree = make_tree(names, number)
        done = _run(command, tree)
        if _fails(done) or (loud != command and number == 0 and _fails(_run(loud, tree))):
            return ""
        assert done.tree is not None
        found.append((_lines(done.stdout), done.exit_code, _changes(tree, done.tree)))
        shows = shows or _shows(tree, done)
    return hashlib.sha256(repr(found).encode()).hexdigest() if shows else ""


def _fails(done: Execution) -> bool:
    """Whether a command could not be run to its end, is misused, or names a file that is not there."""
    error = _text(done.stderr)
    ran = done.ended == "exited" and done.tree is not None and done.exit_code not in CANNOT_BE_RUN
    return not ran or any(sign.search(error) for sign in (FAILED_TO_PARSE, MISUSE)) or NOT_THERE in error


def _changes(before: Tree, after: Tree) -> list[tuple[object, ...]]:
    """What of a tree is no longer as it was, as far as `_trees_differ` looks at it."""
    found: list[tuple[object, ...]] = []
    for path in sorted({*before, *after}):
        old, new = before.get(path), after.get(path)
        if new is None:
            found.append((path, "is gone"))
        elif new != old:
            links = new.links if new.kind == "file" else 1
            found.append((path, new.kind, new.content, links, None if old is None else new.mode))
    return found


def _with_errors_shown(command: str) -> str:
    """A command without `2>/dev/null`, which would hide that it names a file that is not there."""
    try:
        found = tokens(command)
    except ShellSyntaxError:
        return command
    for start, end in sorted(_silencers(found), reverse=True):
        command = command[:start] + command[end:]
    return command


def _silencers(found: Sequence[Token]) -> Iterator[tuple[int, int]]:
    """The places of `2>/dev/null` among these tokens and inside them."""
    for token, after in itertools.pairwise(found):
        if token.kind == "redirection" and token.text in ("2>", "2>>") and after.text == "/dev/null":
            yield token.start, after.end
    for token in found:
        for inner in token.inner:
            yield from _silencers(inner)


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
    left, right = _lines(wanted), _lines(got)
    if left == right:
        return ""
    if sorted(left) == sorted(right):
        return "the same lines in another order" if ordered else ""
    place = 0
    while place < min(len(left), len(right)) and left[place] == right[place]:
        place += 1
    count = "" if len(left) == len(right) else f"{len(right)} lines instead of {len(left)}; "
    return f"{count}line {place + 1}: {_shown(right, place)} instead of {_shown(left, place)}"


def _lines(text: bytes) -> list[str]:
    return [line.rstrip() for line in _text(text).rstrip().split("\n")]


def _shown(lines: Sequence[str], place: int) -> str:
    return _short(lines[place]) if place < len(lines) else "nothing"


def _trees_differ(before: Tree, wanted: Tree, got: Tree) -> str:
    """What differs between two trees, or nothing. Modes count for what was there before."""
    for path in sorted({*wanted, *got}):
        left, right = wanted.get(path), got.get(path)
        name = _short(path)
        if left is None:
            return f"{name} is there"
        if right is None:
            return f"{name} is missing"
        if left.kind != right.kind:
            return f"{name} is a {right.kind} instead of a {left.kind}"
        if left.content != right.content:
            return f"{name} has another content"
        if left.kind == "file" and left.links != right.links:
            return f"{name} has {right.links} hard links instead of {left.links}"
        if path in before and left.mode != right.mode:
            return f"{name} has mode {right.mode:o} instead of {left.mode:o}"
    return ""


# Words


@functools.cache
def versions() -> tuple[str, ...]:
    """What execution depends on: the tools inside the sandbox, a line each; nothing without a sandbox."""
    return () if unavailable() else tuple(_text(execute(VERSIONS).stdout).splitlines())


def _ending(execution: Execution) -> str:
    if execution.ended == "exited":
        return f"ended with status {execution.exit_code}"
    if execution.ended == "timeout":
        return f"ran longer than {WALL:g} s"
    return "wrote too much" if execution.ended == "output" else "was killed"


def _first_line(text: bytes) -> str:
    """The first line that says something, without the shell's name in front."""
    for line in _text(text).splitlines():
        if line.strip():
            said = re.sub(r"^(/\w+)*/?bash: (-c: )?(line \d+: )?", "", line)
            return _short(said, 120).strip("'\"`")
    return ""


def _text(output: bytes) -> str:
    return output.decode(errors="replace")


def _short(text: str, most: int = 40) -> str:
    shown = repr(text)
    return shown if len(shown) <= most else f"{shown[: most - 4]}...{shown[0]}"
